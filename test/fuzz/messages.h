#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "rpc/protocol.h"

namespace droid::fuzz {

// A request as a master sends it: command u8 | size u64 | payload.
struct Message {
    uint8_t command;
    std::vector<uint8_t> payload;
};

// As many whole messages as there are; what follows them is dropped.
std::vector<Message> parse_messages(const uint8_t * data, size_t size);
std::vector<uint8_t> join_messages(const std::vector<Message> & messages);

// Where the wire tensors of a message begin in its payload, as far as it holds them.
std::vector<size_t> tensor_offsets(const Message & message);

}  // namespace droid::fuzz
