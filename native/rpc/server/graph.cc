#include "rpc/server/graph.h"

#include <algorithm>

#include "rpc/server/refusal.h"

namespace droid::rpc {

void Graph::check(const Segment & segment) {
    for (const IndexInput & input : segment.indices) {
        const std::string problem = check_indices(input);
        if (!problem.empty()) throw Refusal(problem);
    }
}

ggml_cgraph Graph::view(const Segment & segment) {
    ggml_cgraph graph = {};
    graph.size = segment.count;
    graph.n_nodes = segment.count;
    graph.nodes = nodes.data() + segment.first;
    graph.use_counts = use_counts.data();
    graph.visited_hash_set = {hash_keys.size(), hash_used.data(), hash_keys.data()};
    graph.order = GGML_CGRAPH_EVAL_ORDER_LEFT_TO_RIGHT;
    return graph;
}

bool Graph::current(uint64_t epoch) const {
    return epoch == buffers_epoch && std::all_of(weights.begin(), weights.end(), [](const auto & entry) {
               return entry.first->epoch() == entry.second;
           });
}

}  // namespace droid::rpc
