#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ggml.h"
#include "rpc/server/op_check.h"
#include "rpc/server/weights.h"

#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"  // static functions in a header
#include "ggml-impl.h"
#pragma GCC diagnostic pop

namespace droid::rpc {

// A graph that was checked, in memory of its own. It runs in segments: before each, the values that its nodes use as
// indices are there, will not change until they are used, and are checked.
struct Graph {
    struct Segment {
        int first = 0;  // node
        int count = 0;
        std::vector<IndexInput> indices;
    };

    // What the data of the segment's indices is good for; throws Refusal.
    static void check(const Segment & segment);

    // Nodes [first, first + count) as ggml wants them.
    ggml_cgraph view(const Segment & segment);

    // Whether its pointers are still those that reading it again would give.
    bool current(uint64_t buffers_epoch) const;

    std::vector<ggml_tensor> tensors;
    std::vector<ggml_tensor *> nodes;
    std::vector<Segment> segments;

    std::vector<ggml_bitset_t> hash_used;
    std::vector<ggml_tensor *> hash_keys;
    std::vector<int32_t> use_counts;

    uint64_t buffers_epoch = 0;
    std::vector<std::pair<std::shared_ptr<Weight>, uint64_t>> weights;  // and their epochs
    std::vector<std::shared_ptr<const void>> owners;                    // of data that nodes point to
};

}  // namespace droid::rpc
