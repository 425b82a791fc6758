#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"

namespace droid::rpc {

// What a server has done since it started. Written by session threads, read by any.
struct ServerCounters {
    std::atomic<uint64_t> clients{0};
    std::atomic<uint64_t> clients_total{0};
    std::atomic<uint64_t> graphs_computed{0};
    std::atomic<uint64_t> compute_us{0};
    std::atomic<uint64_t> messages_received{0};
    std::atomic<uint64_t> messages_sent{0};
    std::atomic<uint64_t> bytes_received{0};
    std::atomic<uint64_t> bytes_sent{0};
    std::atomic<uint64_t> bytes_allocated{0};  // of all buffers: weights, KV cache, compute buffers
    std::atomic<uint64_t> bytes_weights{0};    // tensor data in buffers that no graph writes to
};

using EventFn = std::function<void(const std::string & line)>;

// One client of an RPC server: reads commands from a connected socket and carries them out.
class Session {
  public:
    // backends: one for each device, used by this session alone. on_event may be empty.
    Session(int fd, std::vector<ggml_backend_t> backends, const std::string & cache_dir, ServerCounters & counters,
            EventFn on_event);
    ~Session();
    Session(const Session &) = delete;
    Session & operator=(const Session &) = delete;

    // Returns when the client is gone, misbehaved, or the socket was shut down; then says why.
    std::string serve();

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace droid::rpc
