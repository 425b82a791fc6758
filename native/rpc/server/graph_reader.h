#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "rpc/protocol.h"
#include "rpc/server/buffers.h"
#include "rpc/server/graph.h"

namespace droid::rpc {

// The most bytes that a GRAPH_COMPUTE may have.
constexpr uint64_t max_graph_size = 3 * sizeof(uint32_t) + max_graph_nodes * sizeof(uint64_t) +
                                    static_cast<uint64_t>(max_graph_tensors) * sizeof(Tensor);

// Reads the payload of GRAPH_COMPUTE and makes sure that computing it touches nothing but the client's buffers and
// cannot fail. Weights that are only multiplied with are repacked on the way. Throws Refusal.
std::unique_ptr<Graph> read_graph(const uint8_t * payload, size_t size, Buffers & buffers, WeightStore & store);

}  // namespace droid::rpc
