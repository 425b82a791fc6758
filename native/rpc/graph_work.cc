#include "rpc/graph_work.h"

#include "ggml-impl.h"

namespace droid::rpc {

double node_work(const ggml_tensor & node) {
    const double elements = static_cast<double>(ggml_nelements(&node));
    switch (node.op) {
        case GGML_OP_MUL_MAT:
        case GGML_OP_MUL_MAT_ID:
        case GGML_OP_OUT_PROD: return node.src[0] ? 2 * elements * static_cast<double>(node.src[0]->ne[0]) : elements;
        case GGML_OP_FLASH_ATTN_EXT: {
            const ggml_tensor * q = node.src[0];
            const ggml_tensor * k = node.src[1];
            // Each query meets each key, then each value.
            return q && k ? 4 * static_cast<double>(ggml_nelements(q)) * static_cast<double>(k->ne[1]) : elements;
        }
        default: return ggml_op_is_empty(node.op) ? 0 : elements;
    }
}

double graph_work(const ggml_cgraph & graph) {
    double work = 0;
    for (int i = 0; i < graph.n_nodes; i++) {
        work += node_work(*graph.nodes[i]);
    }
    return work;
}

}  // namespace droid::rpc
