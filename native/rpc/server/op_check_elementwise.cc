#include <cmath>

#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

const char * check_binary(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & b = src(node, 1);
    if (!is_float(a.type)) return "the first operand is not of a float type";
    if (b.type != a.type && b.type != GGML_TYPE_F32) return "no kernel for these operand types";
    if (node.type != a.type && (node.type != GGML_TYPE_F32 || b.type != GGML_TYPE_F32)) {
        return "no kernel for this result type";
    }
    if (!same_shape(a, node)) return "the result has another shape than the first operand";
    if (!repeats_to(b, a)) return "the second operand cannot be broadcast to the first";
    if (!packed_row(node) || !packed_row(a)) return "rows are not contiguous";
    return nullptr;
}

const char * check_add_id(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & b = src(node, 1);
    const ggml_tensor & ids = src(node, 2);
    if (!is_f32(node) || !is_f32(a) || !is_f32(b) || ids.type != GGML_TYPE_I32) return "wrong types";
    if (!packed_row(node) || !packed_row(a) || !packed_row(b)) return "rows are not contiguous";
    if (!same_shape(a, node)) return "the result has another shape than the first operand";
    if (b.ne[0] != a.ne[0]) return "rows of different lengths";
    if (a.ne[3] != 1 || ids.ne[0] != a.ne[1] || ids.ne[1] != a.ne[2]) return "not one id for each row";
    return nullptr;
}

static const char * check_map(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (node.type != a.type) return "the result has another type than the operand";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!packed_row(node) || !packed_row(a)) return "rows are not contiguous";
    return nullptr;
}

const char * check_unary(const ggml_tensor & node) {
    const int64_t op = param_i32(node, 0);
    if (op < 0 || op >= GGML_UNARY_OP_COUNT) return "unknown unary op";
    const ggml_type type = src(node, 0).type;
    switch (op) {
        case GGML_UNARY_OP_GELU:
        case GGML_UNARY_OP_GELU_ERF:
        case GGML_UNARY_OP_GELU_QUICK:
        case GGML_UNARY_OP_SILU:
            if (type != GGML_TYPE_F32 && type != GGML_TYPE_F16) return "no kernel for this type";
            break;
        default:
            if (!is_float(type)) return "no kernel for this type";
    }
    if (op == GGML_UNARY_OP_XIELU && (!ggml_is_contiguous_1(&node) || !ggml_is_contiguous_1(&src(node, 0)))) {
        return "rows are not evenly spaced";
    }
    return check_map(node);
}

const char * check_math(const ggml_tensor & node) {
    if (!is_float(src(node, 0).type)) return "no kernel for this type";
    return check_map(node);
}

const char * check_glu(const ggml_tensor & node) {
    const int64_t op = param_i32(node, 0);
    if (op < 0 || op >= GGML_GLU_OP_COUNT) return "unknown gated op";
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor * gate = node.src[1];
    if (a.type != GGML_TYPE_F32 && (a.type != GGML_TYPE_F16 || op == GGML_GLU_OP_SWIGLU_OAI)) {
        return "no kernel for this type";
    }
    if (node.type != a.type) return "the result has another type than the operand";
    if (!packed_row(a) || !flat_rows(a) || !packed_row(node) || !flat_rows(node)) return "rows are not evenly spaced";
    if (gate) {
        if (gate->type != a.type || !same_shape(*gate, a)) return "the operands differ in type or shape";
        if (!packed_row(*gate) || !flat_rows(*gate)) return "rows are not evenly spaced";
        if (!same_shape(node, a)) return "the result has another shape than the operands";
    } else {
        if (a.ne[0] % 2 != 0) return "the operand cannot be halved";
        if (!has_shape(node, a.ne[0] / 2, a.ne[1], a.ne[2], a.ne[3])) return "the result is not half the operand";
    }
    // std::clamp(x, -limit, limit)
    const bool limited = op == GGML_GLU_OP_SWIGLU_OAI || op == GGML_GLU_OP_SWIGLU_CLAMP;
    if (limited && !(param_f32(node, 3) >= 0)) return "the limit is negative";
    return nullptr;
}

const char * check_scale(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!ggml_is_contiguous(&a) || !flat_rows(a) || !ggml_is_contiguous(&node) || !flat_rows(node)) {
        return "a tensor is not contiguous";
    }
    // The kernel with a bias walks the operand with the stride of the result.
    if (a.ne[1] * a.ne[2] * a.ne[3] > 1 && a.nb[1] != node.nb[1]) return "the strides differ";
    return nullptr;
}

const char * check_clamp(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (a.type != GGML_TYPE_F32 && a.type != GGML_TYPE_F16) return "no kernel for this type";
    if (const char * reason = check_map(node)) return reason;
    if (!flat_rows(a) || !flat_rows(node)) return "rows are not evenly spaced";
    return nullptr;
}

const char * check_fill(const ggml_tensor & node) {
    if (src(node, 0).type != GGML_TYPE_F32 && src(node, 0).type != GGML_TYPE_F16) return "no kernel for this type";
    if (node.type != src(node, 0).type) return "the result has another type than the operand";
    if (!packed_row(node)) return "rows are not contiguous";
    return nullptr;
}

const char * check_tri(const ggml_tensor & node) {
    const int64_t kind = param_i32(node, 0);
    if (kind < GGML_TRI_TYPE_UPPER_DIAG || kind > GGML_TRI_TYPE_LOWER) return "unknown triangle";
    if (!is_f32(src(node, 0))) return "no kernel for this type";
    if (!ggml_is_contiguous(&src(node, 0))) return "the operand is not contiguous";
    return check_map(node);
}

const char * check_arange(const ggml_tensor & node) {
    if (!is_f32(node)) return "no kernel for this type";
    if (!packed(node)) return "the result is not contiguous";
    const float steps = std::ceil((param_f32(node, 1) - param_f32(node, 0)) / param_f32(node, 2));
    // First the range: a float beyond it has no integer.
    if (!(steps >= 1 && steps <= static_cast<float>(max_rows))) return "an impossible number of steps";
    if (static_cast<int64_t>(steps) != ggml_nelements(&node)) return "the result does not hold one element a step";
    return nullptr;
}

}  // namespace droid::rpc::rules
