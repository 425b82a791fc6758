#include "server.h"

#include <fcntl.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <chrono>

#include "ggml-cpu.h"
#include "socket.h"

namespace droid::rpc {

namespace {

std::string peer_name(const sockaddr_storage & address, socklen_t length) {
    char host[NI_MAXHOST] = "", port[NI_MAXSERV] = "";
    getnameinfo(reinterpret_cast<const sockaddr *>(&address), length, host, sizeof host, port, sizeof port,
                NI_NUMERICHOST | NI_NUMERICSERV);
    return std::string(host) + ":" + port;
}

// The backends of one client. Each client has its own, since a backend computes one graph at a time.
class Backends {
  public:
    explicit Backends(int threads) {
        for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
            ggml_backend_t backend = ggml_backend_dev_init(ggml_backend_dev_get(i), nullptr);
            if (!backend) continue;
            list_.push_back(backend);
            if (!ggml_backend_is_cpu(backend)) continue;
            ggml_backend_cpu_set_n_threads(backend, threads);
            if (threads > 1 && !pool_) {
                // Without a pool of its own the CPU backend starts its threads anew for every graph.
                ggml_threadpool_params params = ggml_threadpool_params_default(threads);
                // Between two graphs lies a wait for the network: spinning would only take the cores from others.
                params.poll = 0;
                pool_ = ggml_threadpool_new(&params);
                ggml_backend_cpu_set_threadpool(backend, pool_);
            }
        }
    }
    ~Backends() {
        for (ggml_backend_t backend : list_) ggml_backend_free(backend);
        if (pool_) ggml_threadpool_free(pool_);
    }
    Backends(const Backends &) = delete;
    Backends & operator=(const Backends &) = delete;

    const std::vector<ggml_backend_t> & list() const { return list_; }

  private:
    std::vector<ggml_backend_t> list_;
    ggml_threadpool_t pool_ = nullptr;
};

}  // namespace

Server::Server(ServerOptions options) : options_(std::move(options)) {
    std::tie(listen_fd_, port_) = listen_tcp(options_.host, options_.port);
    if (pipe(wake_pipe_) == 0) {
        for (int fd : wake_pipe_) fcntl(fd, F_SETFD, FD_CLOEXEC);
    }
    acceptor_ = std::thread([this] { accept_loop(); });
}

Server::~Server() {
    stop();
}

std::vector<DeviceInfo> Server::devices() {
    std::vector<DeviceInfo> list;
    for (size_t i = 0; i < ggml_backend_dev_count(); i++) {
        ggml_backend_dev_t device = ggml_backend_dev_get(i);
        size_t free = 0, total = 0;
        ggml_backend_dev_memory(device, &free, &total);
        list.push_back({ggml_backend_dev_name(device), ggml_backend_dev_description(device), total, free});
    }
    return list;
}

void Server::accept_loop() {
    for (;;) {
        pollfd waiting[2] = {{listen_fd_, POLLIN, 0}, {wake_pipe_[0], POLLIN, 0}};
        if (poll(waiting, 2, -1) < 0 && errno != EINTR) return;
        if (waiting[1].revents) return;
        if (!(waiting[0].revents & POLLIN)) continue;
        sockaddr_storage address = {};
        socklen_t length = sizeof address;
        const int fd = accept(listen_fd_, reinterpret_cast<sockaddr *>(&address), &length);
        if (fd < 0) continue;
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        tune_socket(fd);
        const std::string peer = peer_name(address, length);

        std::unique_lock<std::mutex> lock(mutex_);
        reap();
        // A client that has hung up may not be gone yet, such as the probe of this very master.
        for (int i = 0; i < 100 && !stopping_ && static_cast<int>(clients_.size()) >= options_.max_clients; i++) {
            lock.unlock();
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
            lock.lock();
            reap();
        }
        if (stopping_ || static_cast<int>(clients_.size()) >= options_.max_clients) {
            if (options_.on_event) options_.on_event("client " + peer + " turned away: too many clients");
            close_socket(fd);
            continue;
        }
        Client & client = clients_.emplace_back();
        client.fd = fd;
        client.thread = std::thread([this, &client, peer] { serve(client, peer); });
    }
}

void Server::serve(Client & client, const std::string & peer) {
    counters_.clients++;
    counters_.clients_total++;
    if (options_.on_event) options_.on_event("client " + peer + " connected");
    std::string reason;
    try {
        Backends backends(options_.threads);
        Session session(client.fd, backends.list(), options_.cache_dir, counters_,
                        options_.verbose ? options_.on_event : EventFn());
        reason = session.serve();
    } catch (const std::exception & error) {
        reason = std::string("failed: ") + error.what();
    }
    counters_.clients--;
    // The descriptor stays open until the thread is joined, so that stop() never shuts down somebody else's.
    shutdown_socket(client.fd);
    if (options_.on_event) options_.on_event("client " + peer + " " + reason);
    client.done = true;
}

void Server::reap() {
    for (auto client = clients_.begin(); client != clients_.end();) {
        if (!client->done) {
            ++client;
            continue;
        }
        client->thread.join();
        close_socket(client->fd);
        client = clients_.erase(client);
    }
}

void Server::stop() {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_) return;
        stopping_ = true;
    }
    const char byte = 0;
    while (write(wake_pipe_[1], &byte, 1) < 0 && errno == EINTR) {}
    acceptor_.join();
    close_socket(listen_fd_);
    // The acceptor is gone, so the list changes no more.
    for (Client & client : clients_) shutdown_socket(client.fd);
    for (Client & client : clients_) {
        client.thread.join();
        close_socket(client.fd);
    }
    clients_.clear();
    for (int fd : wake_pipe_) close(fd);
}

}  // namespace droid::rpc
