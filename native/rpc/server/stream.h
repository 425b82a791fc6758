#pragma once

#include <sys/uio.h>

#include <cstddef>

namespace droid::rpc {

// The two directions of a connection; whole messages or nothing.
class Stream {
  public:
    virtual ~Stream() = default;

    // False when the other end is gone before all of size is there.
    virtual bool read(void * data, size_t size) = 0;
    // All pieces, one after the other; false when the other end is gone.
    virtual bool write(const iovec * pieces, int count) = 0;
    // Whether the other end has hung up, as far as one can tell without reading.
    virtual bool hung_up() { return false; }
};

}  // namespace droid::rpc
