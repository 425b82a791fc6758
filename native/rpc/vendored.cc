// Both ends of the vendored ggml-rpc, behind backend.h and session.h. The source is included, not linked, because its
// server can neither be stopped nor counted and serves one client at a time: the loop around rpc_server is ours.

#include "ggml-rpc.cpp"

#include <chrono>
#include <map>

#include "backend.h"
#include "errors.h"
#include "session.h"
#include "socket.h"

namespace droid::rpc {

// ---------------------------------------------------------------------------------------------------------- client

Worker::Worker(const std::string & endpoint, const std::string & host, uint16_t port)
    : endpoint_(endpoint), link_(endpoint, host, port) {
    constexpr int handshake_seconds = 10;
    link_.set_receive_timeout(handshake_seconds);
    try {
        // Holding the dispatcher keeps the connection; ggml-rpc itself only remembers it weakly.
        connection_ = get_dispatcher(link_.name());
        // A worker's first device; its others would be workers of their own.
        device_ = ggml_backend_reg_dev_get(ggml_backend_rpc_add_server(link_.name().c_str()), 0);
    } catch (const std::exception &) {
        throw CodedError(
            "DROID_ENDPOINT_UNREACHABLE",
            "The worker " + endpoint + " closed the connection, or fell silent, while it was being set up.");
    }
    link_.set_receive_timeout(0);
}

Worker::~Worker() = default;

// ---------------------------------------------------------------------------------------------------------- server

namespace {

const char * command_name(uint8_t cmd) {
    static const char * const names[RPC_CMD_COUNT] = {
        "alloc_buffer", "get_alignment",   "get_max_size", "buffer_get_base", "free_buffer",     "buffer_clear",
        "set_tensor",   "set_tensor_hash", "get_tensor",   "copy_tensor",     "graph_compute",   "get_device_memory",
        "init_tensor",  "get_alloc_size",  "hello",        "device_count",    "graph_recompute", "memset_tensor",
        "none",
    };
    return cmd < RPC_CMD_COUNT ? names[cmd] : "unknown";
}

std::string hex(uint64_t value) {
    char text[19];
    std::snprintf(text, sizeof text, "0x%" PRIx64, value);
    return text;
}

// Tensor data that a SET_TENSOR_HASH stood for; 0 for a tensor no such request can name.
uint64_t tensor_bytes(const rpc_tensor & tensor) {
    if (tensor.type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(tensor.type)) == 0) return 0;
    uint64_t bytes = ggml_row_size(static_cast<ggml_type>(tensor.type), tensor.ne[0]);
    for (int i = 1; i < GGML_MAX_DIMS; i++) bytes *= tensor.ne[i];
    return bytes;
}

bool is_view_op(uint32_t op) {
    return op == GGML_OP_NONE || op == GGML_OP_VIEW || op == GGML_OP_RESHAPE || op == GGML_OP_PERMUTE ||
           op == GGML_OP_TRANSPOSE;
}

}  // namespace

struct Session::Impl {
    struct Buffer {
        uint64_t size = 0;
        uint64_t data = 0;      // tensor bytes the client stored in it
        bool computed = false;  // a graph writes to it: KV cache or compute buffer
    };

    int fd;
    std::string cache_dir;  // rpc_server borrows it
    rpc_server server;
    size_t device_count;
    ServerCounters & counters;
    EventFn on_event;
    std::map<uint64_t, Buffer> buffers;

    Impl(int fd, const std::vector<ggml_backend_t> & backends, const std::string & dir, ServerCounters & counters,
         EventFn on_event)
        : fd(fd),
          cache_dir(dir),
          server(backends, dir.empty() ? nullptr : cache_dir.c_str()),
          device_count(backends.size()),
          counters(counters),
          on_event(std::move(on_event)) {}

    ~Impl() {
        while (!buffers.empty()) forget(buffers.begin()->first);
    }

    // Reads `size u64 | payload`. A payload larger than any tensor this machine could hold is refused unread.
    bool receive(std::vector<uint8_t> & payload) {
        uint64_t size = 0;
        if (!recv_all(fd, &size, sizeof size)) return false;
        if (size > max_payload()) return false;
        payload.resize(size);
        if (!recv_all(fd, payload.data(), size)) return false;
        counters.bytes_received += 1 + sizeof size + size;
        counters.messages_received++;
        return true;
    }

    uint64_t max_payload() const {
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), &free, &total);
        return total;
    }

    bool send(const void * data, uint64_t size) {
        counters.bytes_sent += sizeof size + size;
        counters.messages_sent++;
        return send_all(fd, &size, sizeof size, data, size);
    }

    template <typename Request>
    bool parse(const std::vector<uint8_t> & payload, Request & request) {
        if (payload.size() != sizeof(Request)) return false;
        std::memcpy(&request, payload.data(), sizeof(Request));
        return true;
    }

    template <typename Request>
    bool run(const std::vector<uint8_t> & payload, bool (rpc_server::*handler)(const Request &)) {
        Request request;
        return parse(payload, request) && (server.*handler)(request);
    }

    template <typename Request, typename Response>
    bool answer(const std::vector<uint8_t> & payload, bool (rpc_server::*handler)(const Request &, Response &)) {
        Request request;
        Response response = {};
        return parse(payload, request) && (server.*handler)(request, response) && send(&response, sizeof response);
    }

    void event(uint8_t cmd, const std::string & detail) {
        if (on_event) on_event("[" + std::string(command_name(cmd)) + "] " + detail);
    }

    void forget(uint64_t id) {
        const auto found = buffers.find(id);
        if (found == buffers.end()) return;
        counters.bytes_allocated -= found->second.size;
        if (!found->second.computed) counters.bytes_weights -= found->second.data;
        buffers.erase(found);
    }

    void stored(uint64_t buffer, uint64_t bytes) {
        const auto found = buffers.find(buffer);
        if (found == buffers.end() || found->second.computed) return;
        found->second.data += bytes;
        counters.bytes_weights += bytes;
    }

    // The protocol does not say what a buffer is for; what a graph writes to is not weights.
    void mark_computed(const std::vector<uint8_t> & graph) {
        uint32_t n_nodes, n_tensors;
        std::memcpy(&n_nodes, graph.data() + sizeof(uint32_t), sizeof n_nodes);
        const uint8_t * p = graph.data() + 2 * sizeof(uint32_t);
        std::unordered_set<uint64_t> nodes;
        for (uint32_t i = 0; i < n_nodes; i++, p += sizeof(uint64_t)) {
            uint64_t id;
            std::memcpy(&id, p, sizeof id);
            nodes.insert(id);
        }
        std::memcpy(&n_tensors, p, sizeof n_tensors);
        p += sizeof n_tensors;
        for (uint32_t i = 0; i < n_tensors; i++, p += sizeof(rpc_tensor)) {
            rpc_tensor tensor;
            std::memcpy(&tensor, p, sizeof tensor);
            if (is_view_op(tensor.op) || !nodes.count(tensor.id)) continue;
            const auto found = buffers.find(tensor.buffer);
            if (found == buffers.end() || found->second.computed) continue;
            found->second.computed = true;
            counters.bytes_weights -= found->second.data;
        }
    }

    template <typename Compute>
    bool timed(Compute compute) {
        const auto start = std::chrono::steady_clock::now();
        const bool ok = compute();
        const auto spent = std::chrono::steady_clock::now() - start;
        counters.compute_us += std::chrono::duration_cast<std::chrono::microseconds>(spent).count();
        if (ok) counters.graphs_computed++;
        return ok;
    }

    bool handle(uint8_t cmd, const std::vector<uint8_t> & payload) {
        switch (cmd) {
            case RPC_CMD_DEVICE_COUNT: {
                const rpc_msg_device_count_rsp response = {static_cast<uint32_t>(device_count)};
                return payload.empty() && send(&response, sizeof response);
            }
            case RPC_CMD_ALLOC_BUFFER: {
                rpc_msg_alloc_buffer_req request;
                rpc_msg_alloc_buffer_rsp response = {};
                if (!parse(payload, request) || !server.alloc_buffer(request, response)) return false;
                event(cmd, "size: " + std::to_string(request.size) + " -> " + hex(response.remote_ptr));
                if (response.remote_ptr) {
                    buffers[response.remote_ptr].size = response.remote_size;
                    counters.bytes_allocated += response.remote_size;
                }
                return send(&response, sizeof response);
            }
            case RPC_CMD_FREE_BUFFER: {
                rpc_msg_free_buffer_req request;
                if (!parse(payload, request) || !server.free_buffer(request)) return false;
                event(cmd, "buffer: " + hex(request.remote_ptr));
                forget(request.remote_ptr);
                return true;
            }
            case RPC_CMD_SET_TENSOR: {
                rpc_tensor tensor;
                constexpr size_t head = sizeof tensor + sizeof(uint8_t) + sizeof(uint64_t);
                if (payload.size() < head || !server.set_tensor(payload)) return false;
                std::memcpy(&tensor, payload.data(), sizeof tensor);
                stored(tensor.buffer, payload.size() - head);
                event(cmd, "buffer: " + hex(tensor.buffer) + ", data: " + hex(tensor.data) +
                               ", size: " + std::to_string(payload.size() - head));
                return true;
            }
            case RPC_CMD_SET_TENSOR_HASH: {
                rpc_msg_set_tensor_hash_req request;
                rpc_msg_set_tensor_hash_rsp response = {};
                if (!parse(payload, request) || !server.set_tensor_hash(request, response)) return false;
                if (response.result) stored(request.tensor.buffer, tensor_bytes(request.tensor));
                event(cmd, "hash: " + hex(request.hash) + (response.result ? " (cached)" : " (not cached)"));
                return send(&response, sizeof response);
            }
            case RPC_CMD_GET_TENSOR: {
                rpc_msg_get_tensor_req request;
                std::vector<uint8_t> response;
                if (!parse(payload, request) || !server.get_tensor(request, response)) return false;
                event(cmd, "buffer: " + hex(request.tensor.buffer) + ", data: " + hex(request.tensor.data) +
                               ", size: " + std::to_string(request.size));
                return send(response.data(), response.size());
            }
            case RPC_CMD_GRAPH_COMPUTE: {
                uint32_t device = 0;
                if (payload.size() < 3 * sizeof(uint32_t)) return false;
                std::memcpy(&device, payload.data(), sizeof device);
                if (device >= device_count) return false;
                event(cmd, "device: " + std::to_string(device) + ", size: " + std::to_string(payload.size()));
                if (!timed([&] { return server.graph_compute(payload); })) return false;
                mark_computed(payload);
                return true;
            }
            case RPC_CMD_GRAPH_RECOMPUTE: {
                rpc_msg_graph_recompute_req request;
                if (!parse(payload, request)) return false;
                event(cmd, "device: " + std::to_string(request.device));
                return timed([&] { return server.graph_recompute(request); });
            }
            case RPC_CMD_GET_ALLOC_SIZE: return answer(payload, &rpc_server::get_alloc_size);
            case RPC_CMD_GET_ALIGNMENT: return answer(payload, &rpc_server::get_alignment);
            case RPC_CMD_GET_MAX_SIZE: return answer(payload, &rpc_server::get_max_size);
            case RPC_CMD_BUFFER_GET_BASE: return answer(payload, &rpc_server::buffer_get_base);
            case RPC_CMD_COPY_TENSOR: return answer(payload, &rpc_server::copy_tensor);
            case RPC_CMD_GET_DEVICE_MEMORY: return answer(payload, &rpc_server::get_device_memory);
            case RPC_CMD_BUFFER_CLEAR: return run(payload, &rpc_server::buffer_clear);
            case RPC_CMD_MEMSET_TENSOR: return run(payload, &rpc_server::memset_tensor);
            case RPC_CMD_INIT_TENSOR: return run(payload, &rpc_server::init_tensor);
            default: return false;
        }
    }

    bool greet() {
        uint8_t cmd = 0;
        std::vector<uint8_t> payload;
        rpc_msg_hello_req request;
        if (!recv_all(fd, &cmd, 1) || cmd != RPC_CMD_HELLO || !receive(payload) || !parse(payload, request)) {
            return false;
        }
        rpc_msg_hello_rsp response = {};
        server.hello(response);
        return send(&response, sizeof response);
    }

    std::string serve() {
        if (!greet()) return "left without a handshake";
        std::vector<uint8_t> payload;
        for (;;) {
            uint8_t cmd = 0;
            if (!recv_all(fd, &cmd, 1)) return "disconnected";
            if (!receive(payload)) return "disconnected within " + std::string(command_name(cmd));
            try {
                if (!handle(cmd, payload)) return "dropped: refused " + std::string(command_name(cmd));
            } catch (const std::exception & error) {
                return "dropped: " + std::string(command_name(cmd)) + " failed: " + error.what();
            }
        }
    }
};

Session::Session(int fd, std::vector<ggml_backend_t> backends, const std::string & cache_dir, ServerCounters & counters,
                 EventFn on_event)
    : impl_(std::make_unique<Impl>(fd, backends, cache_dir, counters, std::move(on_event))) {}

Session::~Session() = default;

std::string Session::serve() {
    return impl_->serve();
}

}  // namespace droid::rpc
