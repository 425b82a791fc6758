#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>

namespace droid::rpc {

// An open file descriptor, closed with it.
class File {
  public:
    explicit File(int fd = -1) : fd_(fd) {}
    ~File() { reset(); }
    File(File && other) noexcept : fd_(other.release()) {}
    File & operator=(File && other) noexcept;

    int fd() const { return fd_; }
    explicit operator bool() const { return fd_ >= 0; }
    int release();  // for the caller to close

  private:
    void reset();  // keeps errno

    int fd_;
};

// Reads size bytes at offset, fewer at the file's end; -1 for an error.
ssize_t read_at(const File & file, void * data, size_t size, uint64_t offset);

// Appends all of it; false with errno.
bool write_all(const File & file, const void * data, uint64_t size);

}  // namespace droid::rpc
