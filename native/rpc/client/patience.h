#pragma once

#include <chrono>
#include <cstdint>

struct ggml_cgraph;

namespace droid::rpc {

// How much longer than for an idle worker to wait for one that was given work: it neither reads nor answers before that
// is done. Work is given in order and done in order, so a point in between is a sum.
class Patience {
  public:
    using Clock = std::chrono::steady_clock;

    void graph_sent(double work);
    // A tensor of weights, which the worker hashes, stores and repacks before it reads on. It has done so with those
    // before, give or take what the kernel holds, when a large one could be sent.
    void weight_sent(uint64_t bytes);
    // The same for one that it has already; any number of those may wait.
    void weight_reused(uint64_t bytes);

    // The work sent so far; an answer asked for now says, when it comes, that all of it is done.
    double sent() const { return sent_; }
    // exact: whether now is when the answer came, and not when somebody looked. compute_us: the worker's own time for
    // it; 0 when it does not tell.
    void done(double work, bool exact, uint64_t compute_us);

    // For what is not done yet.
    std::chrono::milliseconds allowance() const;

  private:
    double sent_ = 0;
    double done_ = 0;
    double rate_ = 0;  // FLOP/s, the slowest of late; 0: not measured yet
    double weight_seconds_ = 0;
    Clock::time_point busy_since_;
};

}  // namespace droid::rpc
