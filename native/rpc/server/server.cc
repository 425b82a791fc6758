#include "rpc/server/server.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <thread>

#include "errors.h"
#include "ggml-cpu.h"
#include "rpc/server/compute.h"
#include "rpc/server/connections.h"
#include "rpc/server/memory.h"
#include "rpc/server/session.h"
#include "rpc/server/weight_cache.h"
#include "rpc/server/weights.h"
#include "rpc/socket.h"

namespace droid::rpc {

namespace {

// Connections beyond the clients that are served: those that have not said HELLO yet and those that are turned away.
constexpr size_t max_waiting = 16;
// A master that closes a connection and opens another one at once must not find its own place taken.
constexpr auto slot_wait = std::chrono::milliseconds(500);
constexpr int drain_ms = 1000;
// Without descriptors accept() fails at once, for as long as the connection waits.
constexpr int accept_pause_ms = 100;

std::string peer_name(const sockaddr_storage & address, socklen_t length) {
    char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
    getnameinfo(reinterpret_cast<const sockaddr *>(&address), length, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    return std::string(host) + ":" + port;
}

}  // namespace

struct Server::Impl {
    const ServerOptions options;
    ServerCounters counters;
    Budget budget;
    std::unique_ptr<WeightCache> cache;
    WeightStore weights;
    Compute compute;
    Connections connections;
    int listen_fd = -1;
    uint16_t port = 0;
    int wake_pipe[2] = {-1, -1};
    std::thread acceptor;

    std::mutex mutex;  // of what follows
    std::condition_variable slot_free;
    int slots_taken = 0;
    bool stopping = false;

    std::mutex stop_mutex;
    bool stopped = false;

    explicit Impl(ServerOptions given)
        : options(std::move(given)),
          budget(options.memory_limit ? options.memory_limit : default_memory_limit()),
          cache(options.cache_dir.empty()
                    ? nullptr
                    : std::make_unique<WeightCache>(options.cache_dir, options.cache_limit, options.on_event)),
          weights(budget, cache.get(), counters),
          compute(options.threads, budget),
          connections([this] { wake(); }) {
        if (!options.host.empty()) std::tie(listen_fd, port) = listen_tcp(options.host, options.port);
        try {
            if (pipe(wake_pipe) != 0) throw CodedError("DROID_INVALID_ARGUMENT", "No file descriptor is left.");
            for (const int fd : wake_pipe) {
                fcntl(fd, F_SETFD, FD_CLOEXEC);
                fcntl(fd, F_SETFL, O_NONBLOCK);
            }
            // Between poll() and accept() a client may have gone.
            if (listen_fd >= 0) fcntl(listen_fd, F_SETFL, O_NONBLOCK);
            acceptor = std::thread([this] { accept_loop(); });
        } catch (...) {
            close_descriptors();
            throw;
        }
    }

    ~Impl() { stop(); }

    void event(const std::string & line) const {
        if (options.on_event) options.on_event(line);
    }

    void wake() {
        const char byte = 0;
        while (write(wake_pipe[1], &byte, 1) < 0 && errno == EINTR) {}
    }

    void close_descriptors() {
        if (listen_fd >= 0) close_socket(listen_fd);
        for (const int fd : wake_pipe) {
            if (fd >= 0) close(fd);
        }
    }

    bool is_stopping() {
        std::lock_guard<std::mutex> lock(mutex);
        return stopping;
    }

    void accept_loop() {
        int listening = listen_fd;
        for (;;) {
            pollfd waiting[2] = {{wake_pipe[0], POLLIN, 0}, {listening, POLLIN, 0}};
            const int ready = poll(waiting, 2, listening == listen_fd ? -1 : accept_pause_ms);
            listening = listen_fd;
            if (ready < 0) continue;
            if (waiting[0].revents) {
                char bytes[64];
                while (read(wake_pipe[0], bytes, sizeof bytes) > 0) {}
                if (is_stopping()) return;
                connections.reap();
            }
            if (waiting[1].revents && !accept_one()) listening = -1;
        }
    }

    // False when there are no descriptors left for now.
    bool accept_one() {
        sockaddr_storage address = {};
        socklen_t length = sizeof address;
        const int fd = accept(listen_fd, reinterpret_cast<sockaddr *>(&address), &length);
        if (fd < 0) return errno != EMFILE && errno != ENFILE && errno != ENOBUFS && errno != ENOMEM;
        admit(fd, peer_name(address, length));
        return true;
    }

    void admit(int fd, const std::string & peer) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        // macOS takes it over from the listening socket, and an adopted one may have been another's before.
        fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) & ~O_NONBLOCK);
        tune_client_socket(fd);
        const size_t limit = static_cast<size_t>(std::max(options.max_clients, 0)) + max_waiting;
        if (!connections.start(fd, peer, limit, [this](ClientConnection & connection) { serve(connection); })) {
            counters.clients_refused++;
            event("client " + peer +
                  " turned away: " + (is_stopping() ? "the worker is shutting down" : "too many connections"));
        }
    }

    bool take_slot() {
        std::unique_lock<std::mutex> lock(mutex);
        slot_free.wait_for(lock, slot_wait, [&] { return stopping || slots_taken < options.max_clients; });
        if (stopping || slots_taken >= options.max_clients) return false;
        slots_taken++;
        return true;
    }

    void give_slot() {
        std::lock_guard<std::mutex> lock(mutex);
        slots_taken--;
        slot_free.notify_all();
    }

    void refuse(const ClientConnection & connection, const std::string & why) {
        counters.clients_refused++;
        event("client " + connection.peer + " turned away: " + why);
    }

    void serve(ClientConnection & connection) {
        try {
            serve_client(connection);
        } catch (const std::exception & error) {
            event("client " + connection.peer + " dropped: " + error.what());
        }
    }

    void serve_client(ClientConnection & connection) {
        const SessionShared shared = {compute, weights, budget,
                                      options.client_memory_limit ? options.client_memory_limit : budget.limit(),
                                      counters};
        Session session(connection.stream, shared, options.verbose ? options.on_event : EventFn());
        connection.stream.set_deadline(options.handshake_timeout_ms);
        if (!session.greet()) {
            if (!is_stopping()) {
                refuse(connection, connection.stream.timed_out() ? "it did not say HELLO in time" : "no handshake");
            }
            return;
        }
        connection.stream.clear_deadline();
        if (!take_slot()) {
            const bool leaving = is_stopping();
            session.welcome(leaving ? HelloStatus::shutting_down : HelloStatus::busy);
            refuse(connection, leaving ? "the worker is shutting down" : "too many clients");
            connection.stream.drain(drain_ms);
            return;
        }
        counters.clients++;
        counters.clients_total++;
        event("client " + connection.peer + " connected");
        std::string reason = "disconnected";
        if (session.welcome(HelloStatus::ok)) {
            connection.told = session.extended();
            reason = session.serve();
            connection.told = false;
        }
        counters.clients--;
        if (session.dropped()) counters.clients_dropped++;
        event("client " + connection.peer + " " + reason);
        if (session.dropped()) connection.stream.drain(drain_ms);
        give_slot();
    }

    void stop() {
        std::lock_guard<std::mutex> once(stop_mutex);
        if (stopped) return;
        stopped = true;
        {
            std::lock_guard<std::mutex> lock(mutex);
            stopping = true;
            slot_free.notify_all();
        }
        wake();
        acceptor.join();
        compute.stop();
        connections.stop(make_notice(NoticeReason::shutting_down, "the worker is shutting down"));
        close_descriptors();
    }
};

Server::Server(ServerOptions options) : impl_(std::make_unique<Impl>(std::move(options))) {}

Server::~Server() = default;

uint16_t Server::port() const {
    return impl_->port;
}

const ServerCounters & Server::counters() const {
    return impl_->counters;
}

std::vector<DeviceInfo> Server::devices() const {
    ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    return {
        {ggml_backend_dev_name(cpu), ggml_backend_dev_description(cpu), impl_->budget.limit(), impl_->budget.left()}};
}

void Server::adopt(int fd, const std::string & peer) {
    impl_->admit(fd, peer);
}

void Server::stop() {
    impl_->stop();
}

}  // namespace droid::rpc
