#pragma once

#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "errors.h"
#include "options.h"
#include "placement.h"
#include "request.h"
#include "thread_pool.h"

namespace droid {

struct Route {
    const char * method;
    const char * path;
};

struct WorkerTraffic {
    std::string endpoint;
    uint64_t graphs = 0;
    uint64_t messages_sent = 0;
    uint64_t messages_received = 0;
    uint64_t bytes_sent = 0;
    uint64_t bytes_received = 0;
    uint64_t wait_us = 0;
};

struct EngineCounters {
    uint64_t tokens_generated = 0;
    uint64_t prompt_tokens = 0;
    double tokens_per_second = 0;
    double prompt_tokens_per_second = 0;
    uint64_t active_requests = 0;
    std::vector<WorkerTraffic> workers;
};

namespace rpc {
class Worker;
}

// llama.cpp's server engine in this process: a thread that loads the model and then runs its loop, and threads for the
// requests, whose handlers block.
class Engine {
  public:
    struct Callbacks {
        std::function<void(const std::string & stage, double fraction)> on_progress;
        std::function<void(const CodedError * error)> on_loaded;  // error is null when the model is ready
    };

    // Starts loading; the callbacks come on the engine's thread.
    Engine(EngineOptions options, Callbacks callbacks);
    ~Engine();
    Engine(const Engine &) = delete;
    Engine & operator=(const Engine &) = delete;

    static const std::vector<Route> & routes();

    // One entry for the master and one for each of options.workers; valid once loaded.
    const std::vector<DevicePlacement> & placement() const { return placement_; }

    // Answers request on a thread of its own. Throws CodedError DROID_CLOSED unless loaded and not stopped.
    void handle(std::shared_ptr<Request> request);

    EngineCounters counters() const;

    // Cancels loading and every request and frees the model. The batch that is being computed gets a second to end,
    // then waits for workers are cut short. Idempotent, from any thread but the engine's own.
    void stop();

  private:
    struct Loaded;  // what exists while the model is in memory

    void run();
    void load();
    void answer(Request & request);
    void forget(const std::shared_ptr<Request> & request);

    const EngineOptions options_;
    Callbacks callbacks_;
    std::vector<DevicePlacement> placement_;

    mutable std::mutex mutex_;
    std::condition_variable changed_;
    std::unique_ptr<Loaded> loaded_;
    std::vector<std::weak_ptr<rpc::Worker>> workers_;  // from the moment they are connected
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
