#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

const char * check_norm(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!packed_row(node)) return "rows are not contiguous";
    if (node.op == GGML_OP_RMS_NORM && !packed_row(a)) return "rows are not contiguous";
    if (!(param_f32(node, 0) >= 0)) return "epsilon is negative";
    return nullptr;
}

const char * check_group_norm(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    const int64_t groups = param_i32(node, 0);
    if (groups < 1 || groups > a.ne[2]) return "an impossible number of groups";
    return nullptr;
}

const char * check_sum(const ggml_tensor & node) {
    if (!is_f32(src(node, 0)) || !is_f32(node)) return "no kernel for this type";
    if (!packed_row(src(node, 0))) return "rows are not contiguous";
    if (ggml_nelements(&node) != 1) return "the result is not one number";
    return nullptr;
}

const char * check_sum_rows(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (!has_shape(node, 1, a.ne[1], a.ne[2], a.ne[3])) return "the result does not hold one number a row";
    return nullptr;
}

const char * check_cumsum(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    return nullptr;
}

const char * check_argmax(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || node.type != GGML_TYPE_I32) return "no kernel for this type";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (a.ne[2] != 1 || a.ne[3] != 1) return "the operand is not a matrix";
    if (!has_shape(node, a.ne[1], 1, 1, 1)) return "the result does not hold one index a row";
    return nullptr;
}

static const char * check_sorting(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || node.type != GGML_TYPE_I32) return "no kernel for this type";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (!flat_rows(a) || !flat_rows(node)) return "rows are not evenly spaced";
    if (!has_shape(node, node.ne[0], a.ne[1], a.ne[2], a.ne[3])) return "the result has other rows than the operand";
    return nullptr;
}

const char * check_argsort(const ggml_tensor & node) {
    const int64_t order = param_i32(node, 0);
    if (order != GGML_SORT_ORDER_ASC && order != GGML_SORT_ORDER_DESC) return "unknown sort order";
    if (node.ne[0] != src(node, 0).ne[0]) return "the result has another shape than the operand";
    return check_sorting(node);
}

const char * check_top_k(const ggml_tensor & node) {
    if (node.ne[0] > src(node, 0).ne[0]) return "k is more than a row holds";
    return check_sorting(node);
}

const char * check_pool_2d(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if ((a.type != GGML_TYPE_F32 && a.type != GGML_TYPE_F16) || !is_f32(node)) return "no kernel for this type";
    if (!packed(a) || !packed(node)) return "a tensor is not contiguous";
    const int64_t kind = param_i32(node, 0);
    if (kind < 0 || kind >= GGML_OP_POOL_COUNT) return "unknown pooling";
    if (node.ne[2] != a.ne[2] || node.ne[3] != a.ne[3]) return "the result has other planes than the operand";
    for (int i = 0; i < 2; i++) {
        const int64_t kernel = param_i32(node, 1 + i);
        const int64_t stride = param_i32(node, 3 + i);
        const int64_t padding = param_i32(node, 5 + i);
        if (kernel < 1 || stride < 1 || padding < 0 || padding >= kernel) return "impossible kernel, stride or padding";
        if (kernel > a.ne[i] + 2 * padding) return "the kernel is larger than the operand";
        // Also bounds the work: a stride far below the kernel would make it quadratic.
        if (stride < kernel / 4) return "the kernels overlap too much";
        if (node.ne[i] != (a.ne[i] + 2 * padding - kernel) / stride + 1) return "the result has the wrong size";
    }
    // The kernel multiplies them in an int.
    if (param_i32(node, 1) * param_i32(node, 2) > INT32_MAX) return "the kernel is too large";
    return nullptr;
}

}  // namespace droid::rpc::rules
