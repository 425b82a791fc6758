#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>

#include "rpc/server/buffers.h"
#include "rpc/server/message_io.h"
#include "rpc/server/weights.h"

namespace droid::rpc {

// The commands that bring weights to a client's buffers: whole tensors, held once for all clients.
class WeightCommands {
  public:
    WeightCommands(MessageIo & io, Buffers & buffers, WeightStore & store, ServerCounters & counters);

    // Each carries out a command and returns what to say about it.
    std::string offer(const MessageIo::Header & header);
    std::string put(const MessageIo::Header & header);
    std::string use(const MessageIo::Header & header);
    std::string set_hash(const MessageIo::Header & header);

    // Receives the data of a SET_TENSOR as a weight if it is one; false when it is ordinary data, still to be read.
    bool receive(const SetTensorHeader & request, const ggml_tensor & tensor, Buffer & buffer, uint64_t at,
                 uint64_t size);

    // The weights that the client has offered and not placed are not kept any longer. A client that begins to write has
    // placed what it offered.
    void unpin();

    // Weights that only this client's offer keeps in memory make room for the buffer that it will place them in: of
    // that many bytes.
    void make_room(uint64_t size);
    // There was no such buffer; weights for which there is no room any more are let go.
    void charge_again();

  private:
    std::shared_ptr<uint8_t> receive_data(Buffer & buffer, uint64_t at, uint64_t size);

    MessageIo & io_;
    Buffers & buffers_;
    WeightStore & store_;
    ServerCounters & counters_;
    std::unordered_map<Sha256, std::shared_ptr<Weight>, Sha256Hash> pinned_;
    uint64_t pinned_bytes_ = 0;
    std::vector<std::shared_ptr<Weight>> uncharged_;  // by make_room()
};

}  // namespace droid::rpc
