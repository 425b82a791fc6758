#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "errors.h"
#include "options.h"
#include "placement.h"
#include "request.h"
#include "thread_pool.h"
#include "workers.h"

namespace droid {

struct Route {
    const char * method;
    const char * path;
};

// A copy of rpc::WorkerCounters.
struct WorkerTraffic {
    std::string endpoint;
    uint64_t graphs = 0;
    uint64_t messages_sent = 0;
    uint64_t messages_received = 0;
    uint64_t writes = 0;
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
    uint64_t waits = 0;
    uint64_t wait_us = 0;
    uint64_t compute_us = 0;
    uint64_t weights_sent = 0;
    uint64_t weights_reused = 0;
};

struct EngineCounters {
    uint64_t tokens_generated = 0;
    uint64_t prompt_tokens = 0;
    double tokens_per_second = 0;
    double prompt_tokens_per_second = 0;
    uint64_t active_requests = 0;
    std::vector<WorkerTraffic> workers;
};

// llama.cpp's server engine in this process: a thread that loads the model and then runs its loop, and threads for the
// requests, whose handlers block.
class Engine {
  public:
    struct Callbacks {
        std::function<void(const std::string & stage, double fraction)> on_progress;
        std::function<void(const CodedError * error)> on_loaded;  // error is null when the model is ready
    };
    // A worker failed; from any thread, at any time until stop() returns. worker is its index in options.workers.
    using OnWorkerLost = std::function<void(size_t worker, const CodedError & error)>;

    // Starts loading; the callbacks come on the engine's thread.
    Engine(EngineOptions options, Callbacks callbacks, OnWorkerLost on_worker_lost);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine & operator=(const Engine &) = delete;

    static const std::vector<Route> & routes();

    // One entry for the master and one for each of options.workers; valid once loaded.
    const std::vector<DevicePlacement> & placement() const { return placement_; }

    const std::string & endpoint(size_t worker) const { return options_.workers.at(worker).endpoint; }

    // Answers request on a thread of its own. Throws CodedError DROID_CLOSED unless loaded and not stopped.
    void handle(std::shared_ptr<Request> request);

    EngineCounters counters() const;

    // The worker that failed first, when one did: nothing can be computed any more, only closed.
    std::optional<Workers::Failure> failure() const;

    // Cancels loading and every request and frees the model. The batch that is being computed gets a second to end,
    // then waits for workers are interrupted. Idempotent, from any thread but the engine's own.
    void stop();

  private:
    struct Loaded;  // what exists while the model is in memory

    void run();
    void run_loop();
    void cancel_requests();
    void load();
    void answer(Request & request);
    void forget(const std::shared_ptr<Request> & request);

    EngineOptions options_;  // constant but for the workers' addresses, which the engine's thread takes
    Callbacks callbacks_;
    const OnWorkerLost on_worker_lost_;
    std::shared_ptr<rpc::Interrupt> interrupt_ = std::make_shared<rpc::Interrupt>();  // until stop()
    std::vector<DevicePlacement> placement_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::unique_ptr<Loaded> loaded_;
    std::optional<Workers::Failure> last_failure_;  // after loaded_ is gone
    bool ready_ = false;
    std::atomic<bool> stopping_{false};
    bool ended_ = false;
    EngineCounters last_counters_;
    std::set<std::shared_ptr<Request>> requests_;

    std::mutex stop_mutex_;
    ThreadPool pool_;
    std::thread thread_;
};

}  // namespace droid
