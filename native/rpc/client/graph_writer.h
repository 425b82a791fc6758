#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "ggml.h"
#include "rpc/protocol.h"

struct ggml_cgraph;

namespace droid::rpc {

// The worker's handle of the buffer that a tensor lies in; 0 when it lies in none of that worker's.
using BufferHandle = std::function<uint64_t(const ggml_tensor & tensor)>;

// A tensor as it goes over the wire, by itself: with an id of 1 and without sources.
// Throws CodedError DROID_INVALID_ARGUMENT when a size or stride does not fit into the protocol's 32 bits.
Tensor to_wire(const ggml_tensor & tensor, uint64_t buffer);

// Writes the payload of GRAPH_COMPUTE for device 0 over what payload holds: the nodes, their sources, and what those
// are views of. Sources that other graphs have computed travel as plain data, without what they were computed from.
// Throws CodedError DROID_INVALID_ARGUMENT as above, or when the graph is larger than a worker takes.
void write_graph(const ggml_cgraph & graph, const BufferHandle & buffer_of, std::vector<uint8_t> & payload);

}  // namespace droid::rpc
