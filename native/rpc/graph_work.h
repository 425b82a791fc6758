#pragma once

#include "ggml.h"

namespace droid::rpc {

// An estimate of the floating point operations that a node takes: two for each product of a matrix multiplication, else
// one for each element.
double node_work(const ggml_tensor & node);

double graph_work(const ggml_cgraph & graph);

}  // namespace droid::rpc
