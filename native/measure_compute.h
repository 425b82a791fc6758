#pragma once

#include <chrono>
#include <functional>

namespace droid {

struct ComputeSpeed {
    double weight_bytes_per_second = 0;  // weights read for one token, as in generation
    double flops_per_second = 0;         // in a batch of tokens, as in prompt processing
};

// Multiplies quantized matrices as models have them, in the layout that a worker would give them, and takes the fastest
// of several passes: what else runs at the time only slows them down. Half of the time is for each speed; setting up
// and a first pass that does not count come on top. Needs less than 64 MiB. cancelled() is asked from other threads.
// Throws CodedError DROID_OUT_OF_MEMORY, or DROID_CLOSED when cancelled.
ComputeSpeed measure_compute(int threads, std::chrono::milliseconds time, const std::function<bool()> & cancelled);

}  // namespace droid
