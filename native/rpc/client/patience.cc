#include "rpc/client/patience.h"

#include <algorithm>

namespace droid::rpc {

namespace {

constexpr double initial_rate = 1e9;  // FLOP/s; an old phone with one core does better
constexpr double margin = 8;          // a phone that gets hot slows down to a fraction
constexpr double least_work = 1e8;    // below, an answer's time is the network's
constexpr double weight_rate = 50e6;  // bytes/s
constexpr double longest_seconds = 1800;

}  // namespace

void Patience::graph_sent(double work) {
    if (sent_ <= done_) busy_since_ = Clock::now();
    sent_ += work;
}

void Patience::weight_sent(uint64_t bytes) {
    weight_seconds_ = std::max(weight_seconds_, static_cast<double>(bytes) / weight_rate);
}

void Patience::weight_reused(uint64_t bytes) {
    weight_seconds_ += static_cast<double>(bytes) / weight_rate;
}

void Patience::done(double work, bool exact, uint64_t compute_us) {
    const double finished = work - done_;
    done_ = work;
    weight_seconds_ = 0;
    if (finished <= 0) return;
    const auto now = Clock::now();
    double seconds = std::chrono::duration<double>(now - busy_since_).count();
    busy_since_ = now;
    if (finished < least_work || (!exact && compute_us == 0)) return;
    // A worker that claims far more than has passed would make us as patient as it likes.
    if (compute_us > 0) seconds = std::min(seconds + 1, static_cast<double>(compute_us) / 1e6);
    const double rate = finished / std::max(seconds, 1e-6);
    rate_ = rate_ > 0 ? std::min(rate, 0.9 * rate_ + 0.1 * rate) : rate;
}

std::chrono::milliseconds Patience::allowance() const {
    const double expected = (sent_ - done_) / (rate_ > 0 ? rate_ / margin : initial_rate);
    const double seconds = expected + weight_seconds_;
    return std::chrono::milliseconds(static_cast<int64_t>(std::min(seconds, longest_seconds) * 1000));
}

}  // namespace droid::rpc
