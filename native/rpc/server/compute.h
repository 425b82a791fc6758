#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>

#include "ggml-cpu.h"
#include "rpc/server/graph.h"
#include "rpc/server/memory.h"

namespace droid::rpc {

// The compute threads. Clients take turns in the order in which they ask, a graph each: more threads that spin than
// there are cores would slow all of them down many times.
class Compute {
  public:
    Compute(int threads, Budget & budget);
    ~Compute();
    Compute(const Compute &) = delete;
    Compute & operator=(const Compute &) = delete;

    // Returns the microseconds it took, without waiting for turns. A large graph lets others have theirs in between,
    // and ends early when abandoned() says that nobody wants it any more. Throws Refusal when the values that the graph
    // uses as indices are wrong, the memory for intermediate results is not there, or it ended early.
    uint64_t run(Graph & graph, const std::function<bool()> & abandoned);

    // The running graph ends after its current node; it, those that wait for their turn, and all later ones get a
    // Refusal.
    void stop();

  private:
    class Turn;

    void run_piece(Graph & graph, const Graph::Segment & piece, const std::function<bool()> & abandoned);

    const int threads_;
    Budget & budget_;
    ggml_threadpool_t pool_;
    std::shared_ptr<uint8_t> work_;  // these two: whose turn it is
    Charge work_charge_;
    std::mutex mutex_;
    std::condition_variable next_;
    uint64_t tickets_ = 0;
    uint64_t served_ = 0;
    std::atomic<bool> stopped_{false};
};

}  // namespace droid::rpc
