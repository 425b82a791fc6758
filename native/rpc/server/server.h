#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace droid::rpc {

using EventFn = std::function<void(const std::string & line)>;

struct ServerOptions {
    std::string host;   // empty: no port; clients come by adopt() alone
    uint16_t port = 0;  // 0: any that is free
    int threads = 1;    // that compute, for all clients together
    int max_clients = 8;
    uint64_t memory_limit = 0;         // bytes for all clients; 0: default_memory_limit()
    uint64_t client_memory_limit = 0;  // bytes for one client; 0: memory_limit
    std::string cache_dir;             // empty: no cache on disk
    uint64_t cache_limit = 0;          // bytes; 0: see WeightCache
    int handshake_timeout_ms = 10000;  // for a client to say HELLO
    EventFn on_event;                  // a line for each client that comes or goes; from any thread
    bool verbose = false;              // also a line for each command
};

// What a server has done since it started. Written by its threads, read by any.
struct ServerCounters {
    std::atomic<uint64_t> clients{0};
    std::atomic<uint64_t> clients_total{0};
    std::atomic<uint64_t> clients_refused{0};  // over max_clients, without a handshake, or after stop()
    std::atomic<uint64_t> clients_dropped{0};  // for something they sent
    std::atomic<uint64_t> graphs_computed{0};
    std::atomic<uint64_t> compute_us{0};
    std::atomic<uint64_t> messages_received{0};
    std::atomic<uint64_t> messages_sent{0};
    std::atomic<uint64_t> bytes_received{0};
    std::atomic<uint64_t> bytes_sent{0};
    std::atomic<uint64_t> bytes_allocated{0};         // of all clients' buffers, as they asked for them
    std::atomic<uint64_t> bytes_weights{0};           // of weights in memory; those several clients share count once
    std::atomic<uint64_t> bytes_repacked{0};          // of those, in a layout for this processor's kernels
    std::atomic<uint64_t> bytes_weights_received{0};  // over the network
    std::atomic<uint64_t> bytes_weights_reused{0};    // not sent, since this worker had them in memory or on disk
};

struct DeviceInfo {
    std::string name;
    std::string description;
    uint64_t memory_total = 0;  // what masters may use in all
    uint64_t memory_free = 0;   // of that, at the moment
};

// 80 % of what the OS says programs can take without swapping: MemAvailable on Linux and Android.
uint64_t default_memory_limit();

// An RPC server: a thread that accepts, one for each client, and one set of compute threads that the clients' graphs
// take turns on.
class Server {
  public:
    // Listens; throws CodedError DROID_PORT_IN_USE or DROID_INVALID_ARGUMENT.
    explicit Server(ServerOptions options);
    ~Server();
    Server(const Server &) = delete;
    Server & operator=(const Server &) = delete;

    // 0 without a port.
    uint16_t port() const;
    const ServerCounters & counters() const;
    std::vector<DeviceInfo> devices() const;

    // Serves a client on a stream socket that is connected already, which is the server's to close from here on. Too
    // many of them are turned away as they are at the port. peer: its name for events. From any thread.
    void adopt(int fd, const std::string & peer);

    // Disconnects every client, telling those that can be told, and waits until the running graph is done.
    // Idempotent, from any thread.
    void stop();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace droid::rpc
