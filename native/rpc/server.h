#pragma once

#include <atomic>
#include <cstdint>
#include <list>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "session.h"

namespace droid::rpc {

struct ServerOptions {
    std::string host;
    uint16_t port = 0;  // 0: any that is free
    int threads = 1;
    int max_clients = 8;    // further ones are turned away
    std::string cache_dir;  // empty: no cache
    EventFn on_event;       // a line for each client that comes or goes; from any thread
    bool verbose = false;   // also a line for each command
};

struct DeviceInfo {
    std::string name;
    std::string description;
    uint64_t memory_total = 0;
    uint64_t memory_free = 0;
};

// An RPC server: a thread that accepts, and one for each client.
class Server {
  public:
    // Listens; throws CodedError DROID_PORT_IN_USE or DROID_INVALID_ARGUMENT.
    explicit Server(ServerOptions options);
    ~Server();
    Server(const Server &) = delete;
    Server & operator=(const Server &) = delete;

    uint16_t port() const { return port_; }
    const ServerCounters & counters() const { return counters_; }
    static std::vector<DeviceInfo> devices();

    // Disconnects every client and waits until their running graphs are done. Idempotent, from any thread.
    void stop();

  private:
    struct Client {
        int fd = -1;
        std::thread thread;
        std::atomic<bool> done{false};
    };

    void accept_loop();
    void serve(Client & client, const std::string & peer);
    void reap();

    ServerOptions options_;
    int listen_fd_ = -1;
    uint16_t port_ = 0;
    int wake_pipe_[2] = {-1, -1};
    ServerCounters counters_;
    std::mutex mutex_;
    std::list<Client> clients_;
    bool stopping_ = false;
    std::thread acceptor_;
};

}  // namespace droid::rpc
