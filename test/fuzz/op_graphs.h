#pragma once

#include <vector>

#include "ggml.h"
#include "rpc/client/worker.h"

namespace droid::fuzz {

// Small graphs, one for each kind of op that models use, so that mutations start from shapes which each op accepts.
using OpGraph = ggml_tensor * (*)(ggml_context * context);
const std::vector<OpGraph> & op_graphs();

// Has a worker compute one of them. False when the device does not support the op.
bool compute_op_graph(droid::rpc::Worker & worker, OpGraph make);

}  // namespace droid::fuzz
