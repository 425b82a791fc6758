#include "messages.h"

#include <cstring>

using droid::rpc::Command;
using droid::rpc::Tensor;

namespace droid::fuzz {

namespace {

constexpr size_t header_size = 9;

template <typename T>
T load(const uint8_t * from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

}  // namespace

std::vector<Message> parse_messages(const uint8_t * data, size_t size) {
    std::vector<Message> messages;
    for (size_t at = 0; size - at >= header_size;) {
        const uint64_t payload = load<uint64_t>(data + at + 1);
        if (payload > size - at - header_size) break;
        const uint8_t * begin = data + at + header_size;
        messages.push_back({data[at], {begin, begin + payload}});
        at += header_size + payload;
    }
    return messages;
}

std::vector<uint8_t> join_messages(const std::vector<Message> & messages) {
    std::vector<uint8_t> bytes;
    for (const Message & message : messages) {
        const uint64_t size = message.payload.size();
        const auto * digits = reinterpret_cast<const uint8_t *>(&size);
        bytes.push_back(message.command);
        bytes.insert(bytes.end(), digits, digits + sizeof size);
        bytes.insert(bytes.end(), message.payload.begin(), message.payload.end());
    }
    return bytes;
}

std::vector<size_t> tensor_offsets(const Message & message) {
    const size_t size = message.payload.size();
    size_t first = 0;
    size_t count = 1;
    switch (static_cast<Command>(message.command)) {
        case Command::set_tensor:
        case Command::set_tensor_hash:
        case Command::get_tensor:
        case Command::memset_tensor:
        case Command::init_tensor:
        case Command::put_weight:
        case Command::use_weight: break;
        case Command::copy_tensor: count = 2; break;
        case Command::get_alloc_size:
            first = sizeof(uint32_t);
            count = 1 + GGML_MAX_SRC;
            break;
        case Command::graph_compute: {
            // device u32 | n_nodes u32 | ids u64[] | n_tensors u32 | tensors
            if (size < 8) return {};
            const size_t nodes = load<uint32_t>(message.payload.data() + 4);
            if (nodes > size / 8 || size < 12 + 8 * nodes) return {};
            first = 12 + 8 * nodes;
            count = load<uint32_t>(message.payload.data() + first - 4);
            break;
        }
        default: return {};
    }
    std::vector<size_t> offsets;
    for (size_t i = 0; i < count && first + (i + 1) * sizeof(Tensor) <= size; i++) {
        offsets.push_back(first + i * sizeof(Tensor));
    }
    return offsets;
}

}  // namespace droid::fuzz
