// The transport that the vendored ggml-rpc.cpp is compiled against, in place of its own: same interface (transport.h),
// but it connects through links, counts, and sends a message in one system call instead of three.

#include "transport.h"

#include <chrono>
#include <cstring>
#include <string>
#include <vector>

#include "link.h"
#include "socket.h"

namespace {

// Payloads below this are copied behind the header and leave with it; larger ones are sent from where they are.
constexpr size_t coalesce_limit = 64 * 1024;

// The commands that start a computation, see enum rpc_cmd.
constexpr uint8_t cmd_graph_compute = 10;
constexpr uint8_t cmd_graph_recompute = 16;

}  // namespace

struct socket_t::impl {
    int fd;
    std::string host;
    std::shared_ptr<droid::rpc::LinkCounters> counters;
    std::vector<char> unsent;
    bool in_payload = false;

    impl(int fd, std::string host, std::shared_ptr<droid::rpc::LinkCounters> counters)
        : fd(fd), host(std::move(host)), counters(std::move(counters)) {}
    ~impl() { droid::rpc::close_link_socket(host, fd); }

    bool send_data(const void * data, size_t size) {
        if (unsent.empty() && size == 1) {
            // A message begins with its command.
            const uint8_t cmd = *static_cast<const uint8_t *>(data);
            if (cmd == cmd_graph_compute || cmd == cmd_graph_recompute) counters->graphs++;
        }
        counters->bytes_sent += size;
        if (size < coalesce_limit) {
            const char * p = static_cast<const char *>(data);
            unsent.insert(unsent.end(), p, p + size);
            return true;
        }
        const bool ok = droid::rpc::send_all(fd, unsent.data(), unsent.size(), data, size);
        unsent.clear();
        return ok;
    }

    bool flush() {
        counters->messages_sent++;
        const bool ok = droid::rpc::send_all(fd, unsent.data(), unsent.size());
        unsent.clear();
        return ok;
    }

    bool recv_data(void * data, size_t size) {
        if (size == 0) {
            in_payload = false;
            return true;
        }
        const auto start = std::chrono::steady_clock::now();
        if (!droid::rpc::recv_all(fd, data, size)) return false;
        const auto waited = std::chrono::steady_clock::now() - start;
        counters->wait_us += std::chrono::duration_cast<std::chrono::microseconds>(waited).count();
        counters->bytes_received += size;
        // An answer is its size, then its payload.
        if (!in_payload) counters->messages_received++;
        in_payload = !in_payload;
        return true;
    }
};

socket_t::socket_t(std::unique_ptr<impl> p) : pimpl(std::move(p)) {}
socket_t::~socket_t() = default;

bool socket_t::send_data(const void * data, size_t size) {
    return pimpl->send_data(data, size);
}
bool socket_t::recv_data(void * data, size_t size) {
    return pimpl->recv_data(data, size);
}
bool socket_t::flush() {
    return pimpl->flush();
}

// No RDMA: an all-zero capability block keeps both sides on TCP.
void socket_t::get_caps(uint8_t * local_caps) {
    std::memset(local_caps, 0, RPC_CONN_CAPS_SIZE);
}
void socket_t::update_caps(const uint8_t *) {}

socket_ptr socket_t::connect(const char * host, int) {
    std::shared_ptr<droid::rpc::LinkCounters> counters;
    const int fd = droid::rpc::take_link_socket(host, counters);
    return fd < 0 ? nullptr : socket_ptr(new socket_t(std::make_unique<impl>(fd, host, counters)));
}

// rpc/server.cc listens and accepts; the vendored server loop that would call these is not used.
socket_ptr socket_t::create_server(const char *, int) {
    return nullptr;
}
socket_ptr socket_t::accept() {
    return nullptr;
}

bool rpc_transport_init() {
    return true;
}
void rpc_transport_shutdown() {}
