#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "errors.h"
#include "ggml-backend.h"
#include "rpc/client/interrupt.h"
#include "rpc/client/manifest.h"
#include "rpc/socket.h"

namespace droid::rpc {

// Where a worker is reached: a TCP port, or a stream socket that is connected to it already, which goes with this.
struct WorkerAddress {
    WorkerAddress() = default;
    WorkerAddress(std::string host, uint16_t port) : host(std::move(host)), port(port) {}
    explicit WorkerAddress(OwnedSocket socket) : socket(std::move(socket)) {}

    std::string host;
    uint16_t port = 0;
    OwnedSocket socket;  // empty: connect to host:port
};

// How long to wait for a worker, in milliseconds.
struct WorkerTimeouts {
    int connect_ms = 10000;
    int handshake_ms = 10000;
    // For an answer, and for progress while data is sent. A wait behind a graph gets its computing time on top.
    int answer_ms = 15000;
    // A silent connection is asked after keepalive_idle_ms, every keepalive_interval_ms; data that is not acknowledged
    // for user_timeout_ms, or as many probes, mean that the worker is gone. (TCP keepalive and TCP_USER_TIMEOUT.)
    int keepalive_idle_ms = 5000;
    int keepalive_interval_ms = 2000;
    int user_timeout_ms = 15000;
};

// Traffic of one master with one worker. Written by the connection's user, read by any thread.
struct WorkerCounters {
    std::atomic<uint64_t> graphs{0};
    std::atomic<uint64_t> messages_sent{0};
    std::atomic<uint64_t> messages_received{0};
    std::atomic<uint64_t> writes{0};  // system calls that sent
    std::atomic<uint64_t> bytes_sent{0};
    std::atomic<uint64_t> bytes_received{0};
    std::atomic<uint64_t> waits{0};           // times an answer was not there yet
    std::atomic<uint64_t> wait_us{0};         // spent in them
    std::atomic<uint64_t> compute_us{0};      // the worker's own time, as of the last read; 0 when it does not tell
    std::atomic<uint64_t> weights_sent{0};    // bytes of weights that went over the network
    std::atomic<uint64_t> weights_reused{0};  // bytes that the worker had already
};

// A worker as a ggml device: device 0 of an RPC server, over one connection of its own.
//
// Models and contexts on the device are used by one thread at a time and freed before the Worker. The first failure is
// final: it closes the connection, every later call fails at once with the same error, and freeing is local.
//
// Calls that come through ggml's C code never throw; they return what C understands (no buffer, a size) and the failure
// shows at the next call from C++. All others throw CodedError:
//   DROID_WORKER_LOST            the connection broke, or an answer did not come in time
//   DROID_WORKER_PROTOCOL        the worker answered what no worker would
//   DROID_WORKER_REFUSED         the worker refused a command, and said why
//   DROID_WORKER_OUT_OF_MEMORY   the worker has too little memory
//   DROID_CLOSED                 interrupted
// Each message names the endpoint and the last thing the worker was asked.
class Worker {
  public:
    // Connects, unless the address is a socket, and greets. Throws CodedError DROID_ENDPOINT_TIMEOUT, _REFUSED or
    // _UNREACHABLE while connecting; DROID_VERSION_MISMATCH, DROID_WORKER_BUSY (it has as many masters as it takes), or
    // one of the above after. on_lost comes once, from any thread, for a failure that was not an interruption.
    Worker(std::string endpoint, WorkerAddress address, const WorkerTimeouts & timeouts,
           std::shared_ptr<Interrupt> interrupt, std::function<void(const CodedError &)> on_lost = {});
    ~Worker();
    Worker(const Worker &) = delete;
    Worker & operator=(const Worker &) = delete;

    const std::string & endpoint() const;
    ggml_backend_dev_t device() const;
    const WorkerCounters & counters() const;

    // Whether the worker is one of this package, too (protocol extension).
    bool extended() const;

    // Activations travel as f16 from now on, rounded, in both directions; never weights, inputs, logits or the KV
    // cache. Throws CodedError DROID_INVALID_ARGUMENT when the worker does not know how.
    void use_half();

    // Whether it had weights when it was connected, in memory or on disk: else there is no use in an offer.
    bool holds_weights() const;

    // Tells the worker, in one exchange, which weights are about to be placed on it. Those it has will not be sent. Its
    // answer is waited for by whatever asks the worker next.
    // Without effect on a worker that is not extended.
    void offer(const Manifest & weights);

    // What went wrong, or nothing; from any thread. Also notices a worker that hung up while nobody talked to it.
    std::optional<CodedError> failure() const;

    // The last allocation that the worker refused for want of memory; empty when there was none.
    std::optional<CodedError> allocation_failure() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace droid::rpc
