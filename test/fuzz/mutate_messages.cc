// How libFuzzer changes a conversation: whole messages, single fields of tensors, or bytes of a payload. Changed at
// random, nearly every input would end at the first size that does not fit.
#include <algorithm>
#include <cstring>
#include <iterator>
#include <random>

#include "messages.h"
#include "script.h"

using droid::fuzz::Message;
using droid::rpc::Command;
using droid::rpc::Tensor;

extern "C" size_t LLVMFuzzerMutate(uint8_t * data, size_t size, size_t max_size);

namespace {

// Buffers get the handles 1, 2, …, and a range of addresses each, in that order.
constexpr int address_bits = 44;

class Mutator {
  public:
    explicit Mutator(unsigned seed) : random_(seed) {}

    void mutate(std::vector<Message> & messages) {
        const size_t count = messages.size();
        switch (pick(count > 0 ? 10 : 1)) {
            case 0: insert(messages); break;
            case 1: messages.erase(messages.begin() + ptrdiff_t(pick(count))); break;
            case 2:
                messages.insert(messages.begin() + ptrdiff_t(pick(count + 1)), Message(messages[pick(count)]));
                break;
            case 3: std::swap(messages[pick(count)], messages[pick(count)]); break;
            case 4: mutate_payload(messages[pick(count)]); break;
            default: mutate_tensor(messages); break;
        }
    }

    void splice(std::vector<Message> & messages, const std::vector<Message> & others) {
        if (others.empty()) return;
        const size_t first = pick(others.size());
        const size_t last = first + 1 + pick(others.size() - first);
        const size_t at = pick(messages.size() + 1);
        if (pick(4) == 0) {  // the other one as a whole, from another master or after a restart
            messages.insert(messages.begin() + ptrdiff_t(at), others.begin(), others.end());
            const uint8_t control = pick(4) ? droid::fuzz::other_master : droid::fuzz::restart;
            messages.insert(messages.begin() + ptrdiff_t(at), Message{control, {}});
            return;
        }
        if (pick(2)) messages.resize(at);
        messages.insert(messages.begin() + ptrdiff_t(at), others.begin() + ptrdiff_t(first),
                        others.begin() + ptrdiff_t(last));
    }

    size_t pick(size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random_); }

  private:
    uint32_t interesting() {
        static constexpr uint32_t values[] = {
            0,  1,  2,  3,   4,   5,   7,   8,   9,    15,    16,         17,         31,         32,      33,
            63, 64, 65, 100, 127, 128, 255, 256, 1024, 65536, 0x40000000, 0x7fffffff, 0x80000000, ~0u - 1, ~0u};
        if (pick(8) == 0) return uint32_t(random_());
        return values[pick(pick(2) ? 18 : std::size(values))];
    }

    uint64_t handle() { return pick(16) ? 1 + pick(4) : interesting(); }
    uint64_t address() { return ((1 + pick(4)) << address_bits) + (pick(4) ? 32 * pick(64) : interesting()); }

    template <typename T>
    static void append(Message & message, const T & value) {
        const auto * bytes = reinterpret_cast<const uint8_t *>(&value);
        message.payload.insert(message.payload.end(), bytes, bytes + sizeof value);
    }

    void insert(std::vector<Message> & messages) {
        static constexpr uint8_t commands[] = {0,
                                               1,
                                               2,
                                               3,
                                               4,
                                               5,
                                               6,
                                               7,
                                               8,
                                               9,
                                               10,
                                               11,
                                               12,
                                               13,
                                               15,
                                               16,
                                               17,
                                               128,
                                               129,
                                               130,
                                               131,
                                               132,
                                               133,
                                               134,
                                               135,
                                               255,
                                               droid::fuzz::other_master,
                                               droid::fuzz::restart};
        Message message{commands[pick(std::size(commands))], {}};
        const auto tensor = [&] { append(message, some_tensor(messages)); };
        switch (static_cast<Command>(message.command)) {
            case Command::alloc_buffer:
                append(message, uint32_t(pick(8) ? 0 : interesting()));
                append(message, uint64_t(pick(4) ? 1 + pick(8192) : interesting()));
                break;
            case Command::get_alignment:
            case Command::get_max_size:
            case Command::graph_recompute:
            case Command::get_device_memory: append(message, uint32_t(pick(8) ? 0 : interesting())); break;
            case Command::buffer_get_base:
            case Command::free_buffer: append(message, handle()); break;
            case Command::buffer_clear:
                append(message, handle());
                append(message, uint8_t(pick(256)));
                break;
            case Command::set_tensor:
                tensor();
                append(message, uint8_t(pick(2)));
                append(message, uint64_t(pick(2) ? 0 : interesting()));
                message.payload.resize(message.payload.size() + pick(300), uint8_t(pick(256)));
                break;
            case Command::set_tensor_hash:
            case Command::get_tensor:
                tensor();
                append(message, uint64_t(pick(2) ? 0 : interesting()));
                append(message, uint64_t(interesting()));
                break;
            case Command::memset_tensor:
                tensor();
                append(message, uint64_t(pick(2) ? 0 : interesting()));
                append(message, uint64_t(interesting()));
                append(message, uint8_t(pick(256)));
                break;
            case Command::copy_tensor:
                tensor();
                tensor();
                break;
            case Command::init_tensor: tensor(); break;
            case Command::get_alloc_size:
                append(message, uint32_t(0));
                for (int i = 0; i <= GGML_MAX_SRC; i++) tensor();
                break;
            case Command::write:
                append(message, handle());
                append(message, uint64_t(interesting()));
                {
                    const size_t size = pick(300);
                    append(message, uint64_t(pick(8) ? size : interesting()));
                    message.payload.resize(message.payload.size() + size, uint8_t(pick(256)));
                }
                break;
            case Command::update:
                for (size_t parts = 1 + pick(3); parts > 0; parts--) {
                    const size_t encoded = pick(300);
                    append(message, handle());
                    append(message, uint64_t(pick(2) ? 4 * pick(64) : interesting()));
                    append(message, uint32_t(pick(4) ? encoded * (1 + pick(2)) : interesting()));
                    append(message, uint32_t(pick(8) ? encoded : interesting()));
                    append(message, uint8_t(pick(16) ? pick(3) : interesting()));
                    append(message, uint8_t(pick(8) ? 0 : interesting()));
                    // A repetition in packed data, if that is what it is.
                    for (size_t i = 0; i < encoded; i++) {
                        append(message, uint8_t(i % 4 ? pick(16) : pick(4) ? 1 : pick(256)));
                    }
                }
                break;
            case Command::packed_graph:
                append(message, uint64_t(pick(2) ? 1 + pick(4096) : interesting()));
                message.payload.resize(message.payload.size() + pick(300), uint8_t(pick(256)));
                break;
            case Command::read:
            case Command::read_half:
                append(message, handle());
                append(message, uint64_t(interesting()));
                append(message, uint64_t(interesting()));
                break;
            case Command::put_weight:
            case Command::use_weight:
                tensor();
                message.payload.resize(message.payload.size() + 32 + pick(300), uint8_t(pick(256)));
                break;
            default:
                if (message.command == droid::fuzz::other_master || message.command == droid::fuzz::restart) break;
                message.payload.resize(pick(100), uint8_t(pick(256)));
                break;
        }
        messages.insert(messages.begin() + ptrdiff_t(pick(messages.size() + 1)), std::move(message));
    }

    void mutate_payload(Message & message) {
        if (message.payload.empty()) {
            message.payload.resize(1 + pick(8));
            return;
        }
        const size_t size = message.payload.size();
        message.payload.resize(size + 64);
        message.payload.resize(LLVMFuzzerMutate(message.payload.data(), size, size + 64));
    }

    Tensor some_tensor(const std::vector<Message> & messages) {
        for (int tries = 0; tries < 4 && !messages.empty(); tries++) {
            const Message & message = messages[pick(messages.size())];
            const std::vector<size_t> offsets = droid::fuzz::tensor_offsets(message);
            if (offsets.empty()) continue;
            Tensor tensor;
            std::memcpy(&tensor, message.payload.data() + offsets[pick(offsets.size())], sizeof tensor);
            return tensor;
        }
        Tensor tensor = {};
        tensor.id = 1 + pick(8);
        tensor.buffer = handle();
        for (uint32_t & ne : tensor.ne) ne = 1 + uint32_t(pick(4));
        make_contiguous(tensor);
        tensor.data = address();
        return tensor;
    }

    static void make_contiguous(Tensor & tensor) {
        const auto type = static_cast<ggml_type>(tensor.type < GGML_TYPE_COUNT ? tensor.type : 0);
        const int64_t block = std::max<int64_t>(1, ggml_blck_size(type));
        tensor.nb[0] = uint32_t(ggml_type_size(type));
        tensor.nb[1] = uint32_t(tensor.nb[0] * (tensor.ne[0] / block));
        for (int i = 2; i < GGML_MAX_DIMS; i++) tensor.nb[i] = tensor.nb[i - 1] * tensor.ne[i - 1];
    }

    void mutate_tensor(std::vector<Message> & messages) {
        Message * message = nullptr;
        std::vector<size_t> offsets;
        for (int tries = 0; tries < 8 && offsets.empty(); tries++) {
            message = &messages[pick(messages.size())];
            offsets = droid::fuzz::tensor_offsets(*message);
        }
        if (offsets.empty()) return mutate_payload(*message);
        const auto tensor_at = [&](size_t offset) {
            Tensor tensor;
            std::memcpy(&tensor, message->payload.data() + offset, sizeof tensor);
            return tensor;
        };
        const size_t at = offsets[pick(offsets.size())];
        Tensor tensor = tensor_at(at);
        const Tensor other = tensor_at(offsets[pick(offsets.size())]);
        for (size_t changes = 1 + pick(3); changes > 0; changes--) change_field(tensor, other);
        if (pick(2)) make_contiguous(tensor);
        std::memcpy(message->payload.data() + at, &tensor, sizeof tensor);
    }

    void change_field(Tensor & tensor, const Tensor & other) {
        const size_t dim = pick(GGML_MAX_DIMS);
        switch (pick(16)) {
            case 0: tensor.type = pick(16) ? uint32_t(pick(GGML_TYPE_COUNT)) : interesting(); break;
            case 1:
            case 2: tensor.op = pick(32) ? uint32_t(pick(GGML_OP_COUNT)) : interesting(); break;
            case 3:
            case 4: tensor.ne[dim] = interesting(); break;
            case 5: tensor.nb[dim] = interesting(); break;
            case 6: {
                int32_t & param = tensor.op_params[pick(pick(4) ? 8 : std::size(tensor.op_params))];
                const float value = float(int32_t(interesting())) / 16;
                if (pick(4)) {
                    param = int32_t(interesting());
                } else {
                    std::memcpy(&param, &value, sizeof value);
                }
                break;
            }
            case 7:
            case 8:
                tensor.src[pick(pick(8) ? 4 : GGML_MAX_SRC)] = pick(8) ? other.id : pick(2) ? 0 : interesting();
                break;
            case 9:
                tensor.view_src = pick(4) ? other.id : 0;
                tensor.view_offs = pick(2) ? 0 : interesting();
                break;
            case 10: tensor.data = pick(2) ? other.data : address(); break;
            case 11: tensor.buffer = pick(8) ? handle() : 0; break;
            case 12:
                tensor.type = other.type;
                std::copy(std::begin(other.ne), std::end(other.ne), tensor.ne);
                std::copy(std::begin(other.nb), std::end(other.nb), tensor.nb);
                break;
            case 13: std::swap(tensor.ne[dim], tensor.ne[pick(GGML_MAX_DIMS)]); break;
            case 14: std::copy(std::begin(other.op_params), std::end(other.op_params), tensor.op_params); break;
            default: tensor.flags = int32_t(interesting()); break;
        }
    }

    std::minstd_rand random_;
};

size_t give(const std::vector<Message> & messages, uint8_t * data, size_t max_size) {
    const std::vector<uint8_t> bytes = droid::fuzz::join_messages(messages);
    const size_t size = std::min(bytes.size(), max_size);
    std::copy_n(bytes.begin(), size, data);
    return size;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t * data, size_t size, size_t max_size, unsigned seed) {
    Mutator mutator(seed);
    if (mutator.pick(32) == 0) return LLVMFuzzerMutate(data, size, max_size);
    std::vector<Message> messages = droid::fuzz::parse_messages(data, size);
    // Without its HELLO a conversation is over.
    std::vector<Message> hello;
    if (!messages.empty() && mutator.pick(32)) {
        hello.push_back(std::move(messages.front()));
        messages.erase(messages.begin());
    }
    mutator.mutate(messages);
    messages.insert(messages.begin(), hello.begin(), hello.end());
    return give(messages, data, max_size);
}

extern "C" size_t LLVMFuzzerCustomCrossOver(const uint8_t * one, size_t one_size, const uint8_t * other,
                                            size_t other_size, uint8_t * out, size_t max_size, unsigned seed) {
    std::vector<Message> messages = droid::fuzz::parse_messages(one, one_size);
    Mutator(seed).splice(messages, droid::fuzz::parse_messages(other, other_size));
    return give(messages, out, max_size);
}
