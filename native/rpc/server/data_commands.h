#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "rpc/server/buffers.h"
#include "rpc/server/message_io.h"

namespace droid::rpc {

// The extension's commands for what a graph works on: its inputs, its results, and itself in packed form.
class DataCommands {
  public:
    DataCommands(MessageIo & io, Buffers & buffers) : io_(io), buffers_(buffers) {}

    // What to say about a part that was written or read.
    using Say = std::function<void(const std::string & text)>;

    void write(const MessageIo::Header & header, const Say & say);
    void update(const MessageIo::Header & header, const Say & say);
    // compute_us: the client's so far.
    void read(const MessageIo::Header & header, uint64_t compute_us, const Say & say);
    void read_half(const MessageIo::Header & header, uint64_t compute_us, const Say & say);

    // The payload of the graph_compute that was packed. charge(bytes) comes before that much memory is taken, and
    // throws when it is not there.
    std::vector<uint8_t> unpack_graph(const MessageIo::Header & header,
                                      const std::function<void(uint64_t bytes)> & charge);

  private:
    void read_packed(const UpdateRequest & request, uint8_t * data);
    void read_halves(const UpdateRequest & request, uint8_t * data);

    MessageIo & io_;
    Buffers & buffers_;
    std::vector<uint8_t> packed_;  // at most max_packed_update
};

}  // namespace droid::rpc
