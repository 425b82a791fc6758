#include "rpc/server/session.h"

#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <new>
#include <vector>

#include "ggml-cpu.h"
#include "rpc/server/buffers.h"
#include "rpc/server/data_commands.h"
#include "rpc/server/graph_reader.h"
#include "rpc/server/message_io.h"
#include "rpc/server/refusal.h"
#include "rpc/server/tensor_check.h"
#include "rpc/server/weight_commands.h"

namespace droid::rpc {

namespace {

constexpr uint32_t device_count = 1;
// Memory for a graph beside its message: ggml's tensors, node lists and hash table take at most about as much again.
constexpr uint64_t graph_overhead = 3;

std::string hex(uint64_t value) {
    char text[19];
    std::snprintf(text, sizeof text, "0x%" PRIx64, value);
    return text;
}

// Names of tensors come from the network and end up in logs.
std::string printable(std::string text) {
    for (char & c : text) {
        if (c < ' ' || c > '~') c = '?';
    }
    return text;
}

void check_device(uint32_t device) {
    if (device >= device_count) throw Refusal("there is no device " + std::to_string(device));
}

}  // namespace

std::string make_notice(NoticeReason reason, const std::string & text) {
    const std::string body = printable(text.substr(0, notice_text_limit));
    const uint64_t size = notice_size;
    const Notice notice = {static_cast<uint32_t>(reason), static_cast<uint32_t>(body.size())};
    std::string message;
    message.append(reinterpret_cast<const char *>(&size), sizeof size);
    message.append(reinterpret_cast<const char *>(&notice), sizeof notice);
    return message + body;
}

struct Session::Impl {
    Stream & stream;
    SessionShared shared;
    EventFn on_command;
    MessageIo io;
    Buffers buffers;
    DataCommands data;
    WeightCommands weights;
    uint8_t level = 0;
    bool extended = false;
    bool dropped = false;
    uint64_t compute_us = 0;

    std::vector<uint8_t> graph_message;  // of the graph that was sent last; empty: none
    Charge graph_charge;
    std::unique_ptr<Graph> graph;

    Impl(Stream & stream, const SessionShared & shared, EventFn on_command)
        : stream(stream),
          shared(shared),
          on_command(std::move(on_command)),
          io(stream, shared.counters),
          buffers(shared.budget, shared.client_limit, shared.counters),
          data(io, buffers),
          weights(io, buffers, shared.weights, shared.counters) {}

    void event(const MessageIo::Header & header, const std::string & detail) {
        if (on_command) on_command("[" + std::string(command_name(header.command)) + "] " + printable(detail));
    }

    // A part of a tensor, and where it lies.
    struct Part {
        ggml_tensor tensor;
        Buffer & buffer;
        uint64_t at;  // in the buffer
    };

    Part part_of(const Tensor & wire, uint64_t offset, uint64_t size) {
        ggml_tensor tensor;
        const TensorRange range = read_tensor(wire, tensor);
        if (offset > range.size || size > range.size - offset) throw Refusal("a part is outside of its tensor");
        Buffer & buffer = buffers.at(wire.buffer);
        if (range.size == 0) return {tensor, buffer, 0};
        return {tensor, buffer, buffer.offset_of(range.address, range.size) + offset};
    }

    std::string part_text(const Tensor & wire, uint64_t size) {
        return "buffer: " + hex(wire.buffer) + ", data: " + hex(wire.data) + ", size: " + std::to_string(size);
    }

    void alloc_buffer(const MessageIo::Header & header) {
        const auto request = io.request<AllocBufferRequest>(header);
        check_device(request.device);
        std::string reason;
        weights.make_room(request.size);
        const Buffer * buffer = buffers.allocate(request.size, reason);
        if (!buffer) weights.charge_again();
        event(header, "size: " + std::to_string(request.size) + " -> " + (buffer ? hex(buffer->base()) : reason));
        io.answer(buffer ? AllocBufferAnswer{buffer->handle(), buffer->size()} : AllocBufferAnswer{0, 0});
    }

    void set_tensor(const MessageIo::Header & header) {
        uint64_t size = 0;
        const auto request = io.request_before_data<SetTensorHeader>(header, size);
        const Part part = part_of(request.tensor, request.offset, size);
        if (!weights.receive(request, part.tensor, part.buffer, part.at, size)) {
            weights.unpin();
            io.read(part.buffer.writable(part.at, size), size);
            part.buffer.stored(size);
        }
        event(header, part_text(request.tensor, size));
    }

    void get_tensor(const MessageIo::Header & header) {
        const auto request = io.request<GetTensorRequest>(header);
        const Part part = part_of(request.tensor, request.offset, request.size);
        const Buffer::Data data = part.buffer.readable(part.at, request.size);
        io.answer_bytes(data.data, request.size, nullptr, 0);
        event(header, part_text(request.tensor, request.size));
    }

    void memset_tensor(const MessageIo::Header & header) {
        const auto request = io.request<MemsetTensorRequest>(header);
        const Part part = part_of(request.tensor, request.offset, request.size);
        weights.unpin();
        part.buffer.fill(part.at, request.size, request.value);
        event(header, part_text(request.tensor, request.size));
    }

    void copy_tensor(const MessageIo::Header & header) {
        const auto request = io.request<CopyTensorRequest>(header);
        ggml_tensor source;
        const uint64_t size = read_tensor(request.src, source).size;
        const Part from = part_of(request.src, 0, size), to = part_of(request.dst, 0, size);
        weights.unpin();
        if (size > 0) {
            // The destination first: what its weights give way to may be what is read.
            uint8_t * target = to.buffer.modifiable(to.at, size);
            const Buffer::Data data = from.buffer.readable(from.at, size);
            std::memmove(target, data.data, size);
        }
        event(header, part_text(request.dst, size));
        io.answer(uint8_t{1});
    }

    DataCommands::Say say(const MessageIo::Header & header) {
        return [this, header](const std::string & text) { event(header, text); };
    }

    // For a message of that many bytes and its graph, in place of those that were.
    void charge_graph(uint64_t bytes) {
        graph.reset();
        graph_message.clear();
        if (buffers.charge(graph_charge, bytes * graph_overhead)) return;
        graph_message.shrink_to_fit();
        throw out_of_memory("no memory left for a graph of " + std::to_string(bytes) + " bytes");
    }

    void graph_compute(const MessageIo::Header & header) {
        if (header.size > max_graph_size) throw MessageIo::wrong_size(header);
        charge_graph(header.size);
        std::vector<uint8_t> message(header.size);
        io.read(message.data(), message.size());
        take_graph(header, std::move(message));
    }

    void packed_graph(const MessageIo::Header & header) {
        take_graph(header, data.unpack_graph(header, [this](uint64_t bytes) { charge_graph(bytes); }));
    }

    void take_graph(const MessageIo::Header & header, std::vector<uint8_t> message) {
        uint32_t device = 0;
        if (message.size() < sizeof device) throw MessageIo::wrong_size(header);
        std::memcpy(&device, message.data(), sizeof device);
        check_device(device);
        event(header, "device: " + std::to_string(device) + ", size: " + std::to_string(message.size()));
        graph_message = std::move(message);
        compute();
        weights.unpin();
    }

    void graph_recompute(const MessageIo::Header & header) {
        const auto request = io.request<DeviceRequest>(header);
        check_device(request.device);
        if (graph_message.empty()) throw Refusal("there is no graph to compute again");
        event(header, "device: " + std::to_string(request.device));
        compute();
    }

    void compute() {
        if (!graph || !graph->current(buffers.epoch())) {
            graph.reset();
            graph = read_graph(graph_message.data(), graph_message.size(), buffers, shared.weights);
        }
        const uint64_t spent = shared.compute.run(*graph, [this] { return stream.hung_up(); });
        compute_us += spent;
        shared.counters.compute_us += spent;
        shared.counters.graphs_computed++;
    }

    void free_buffer(const MessageIo::Header & header) {
        const auto request = io.request<BufferRequest>(header);
        buffers.free(request.buffer);
        graph.reset();  // it would keep weights of that buffer in memory
        event(header, "buffer: " + hex(request.buffer));
    }

    void buffer_clear(const MessageIo::Header & header) {
        const auto request = io.request<BufferClearRequest>(header);
        Buffer & buffer = buffers.at(request.buffer);
        buffer.fill(0, buffer.size(), request.value);
        event(header, "buffer: " + hex(request.buffer) + ", value: " + std::to_string(request.value));
    }

    void get_alloc_size(const MessageIo::Header & header) {
        const auto request = io.request<GetAllocSizeRequest>(header);
        check_device(request.device);
        ggml_tensor tensor;
        Tensor wire = request.tensor;
        wire.data = 0;  // not allocated yet
        const uint64_t size = read_tensor(wire, tensor).size;
        event(header, "size: " + std::to_string(size));
        io.answer(size);
    }

    void init_tensor(const MessageIo::Header & header) {
        const auto request = io.request<Tensor>(header);
        part_of(request, 0, 0);
        event(header, part_text(request, 0));
    }

    void get_device_memory(const MessageIo::Header & header) {
        check_device(io.request<DeviceRequest>(header).device);
        const DeviceMemoryAnswer answer = {buffers.left(), std::min(buffers.limit(), shared.budget.limit())};
        event(header, "free: " + std::to_string(answer.free) + ", total: " + std::to_string(answer.total));
        io.answer(answer);
    }

    void handle(const MessageIo::Header & header) {
        const auto command = static_cast<Command>(header.command);
        if (command >= Command::write && !extended) throw Refusal("the command is not known");
        if (command >= Command::update && level < 1) throw Refusal("the command is of another level");
        if (command == Command::write || command == Command::update) weights.unpin();
        switch (command) {
            case Command::alloc_buffer: return alloc_buffer(header);
            case Command::get_alignment:
                check_device(io.request<DeviceRequest>(header).device);
                event(header, "");
                return io.answer(uint64_t{ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type())});
            case Command::get_max_size:
                check_device(io.request<DeviceRequest>(header).device);
                event(header, "");
                return io.answer(buffers.limit());
            case Command::buffer_get_base: {
                const Buffer & buffer = buffers.at(io.request<BufferRequest>(header).buffer);
                event(header, hex(buffer.base()));
                return io.answer(buffer.base());
            }
            case Command::free_buffer: return free_buffer(header);
            case Command::buffer_clear: return buffer_clear(header);
            case Command::set_tensor: return set_tensor(header);
            case Command::set_tensor_hash: return event(header, weights.set_hash(header));
            case Command::get_tensor: return get_tensor(header);
            case Command::copy_tensor: return copy_tensor(header);
            case Command::graph_compute: return graph_compute(header);
            case Command::get_device_memory: return get_device_memory(header);
            case Command::init_tensor: return init_tensor(header);
            case Command::get_alloc_size: return get_alloc_size(header);
            case Command::hello: throw Refusal("the client said it before");
            case Command::device_count:
                if (header.size != 0) throw MessageIo::wrong_size(header);
                event(header, "");
                return io.answer(device_count);
            case Command::graph_recompute: return graph_recompute(header);
            case Command::memset_tensor: return memset_tensor(header);
            case Command::write: return data.write(header, say(header));
            case Command::read: return data.read(header, compute_us, say(header));
            case Command::offer: return event(header, weights.offer(header));
            case Command::put_weight: return event(header, weights.put(header));
            case Command::use_weight: return event(header, weights.use(header));
            case Command::update: return data.update(header, say(header));
            case Command::read_half: return data.read_half(header, compute_us, say(header));
            case Command::packed_graph: return packed_graph(header);
        }
        throw Refusal("the command is not known");
    }

    std::string drop(const MessageIo::Header & header, NoticeReason reason, const std::string & why) {
        dropped = reason != NoticeReason::shutting_down;
        const std::string command = std::string(command_name(header.command)) +
                                    (header.command < static_cast<uint8_t>(Command::write) || extended
                                         ? ""
                                         : " (" + std::to_string(header.command) + ")");
        const std::string text = printable(command + ": " + why);
        if (extended) {
            std::string notice = make_notice(reason, text);
            const iovec piece = {notice.data(), notice.size()};
            shared.counters.bytes_sent += notice.size();
            shared.counters.messages_sent++;
            stream.write(&piece, 1);
        }
        return dropped ? "dropped: " + text : "disconnected: " + text;
    }

    std::string serve() {
        for (;;) {
            MessageIo::Header header = {};
            try {
                header = io.read_header();
            } catch (const Disconnected &) {
                return "disconnected";
            }
            try {
                handle(header);
            } catch (const Disconnected &) {
                return "disconnected within " + std::string(command_name(header.command));
            } catch (const Refusal & refusal) {
                return drop(header, refusal.reason(), refusal.what());
            } catch (const std::bad_alloc &) {
                return drop(header, NoticeReason::out_of_memory, "no memory left");
            } catch (const std::exception & error) {
                return drop(header, NoticeReason::refused, error.what());
            }
        }
    }
};

Session::Session(Stream & stream, const SessionShared & shared, EventFn on_command)
    : impl_(std::make_unique<Impl>(stream, shared, std::move(on_command))) {}

Session::~Session() = default;

bool Session::greet() {
    try {
        const MessageIo::Header header = impl_->io.read_header();
        if (header.command != static_cast<uint8_t>(Command::hello) || header.size != sizeof(Capabilities)) return false;
        const auto capabilities = impl_->io.request<Capabilities>(header);
        impl_->extended = std::memcmp(capabilities.magic, extension_magic, sizeof extension_magic) == 0 &&
                          capabilities.version == extension_version;
        if (impl_->extended) impl_->level = std::min(capabilities.level, extension_level);
        return true;
    } catch (const Disconnected &) {
        return false;
    }
}

bool Session::extended() const {
    return impl_->extended;
}

bool Session::welcome(HelloStatus status) {
    if (status != HelloStatus::ok && !impl_->extended) return false;
    HelloAnswer answer = {};
    answer.major = protocol_major;
    answer.minor = protocol_minor;
    answer.patch = protocol_patch;
    if (impl_->extended) {
        std::memcpy(answer.capabilities.magic, extension_magic, sizeof extension_magic);
        answer.capabilities.version = extension_version;
        answer.capabilities.level = impl_->level;
        answer.capabilities.status = static_cast<uint8_t>(status);
        answer.capabilities.holds_weights = impl_->shared.weights.holds_any();
    }
    try {
        impl_->io.answer(answer);
        return true;
    } catch (const Disconnected &) {
        return false;
    }
}

std::string Session::serve() {
    return impl_->serve();
}

bool Session::dropped() const {
    return impl_->dropped;
}

}  // namespace droid::rpc
