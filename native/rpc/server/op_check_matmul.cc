#include "ggml-backend.h"
#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

// Chunks of 8 results and more are counted in an int.
constexpr int64_t max_results = 1ll << 33;

static const char * check_operands(const ggml_tensor & node) {
    const ggml_tensor & weight = src(node, 0);
    const ggml_tensor & input = src(node, 1);
    if (!is_weight(weight.type)) return "no kernel for this type of weights";
    if (!is_f32(node)) return "the result is not F32";
    if (!packed_row(weight) || !packed_row(input) || !packed_row(node)) return "rows are not contiguous";
    if (!growing_strides(node)) return "the result is permuted";
    if (weight.ne[0] != input.ne[0] || weight.ne[1] != node.ne[0]) return "the shapes do not fit";
    if (ggml_nelements(&node) > max_results) return "too many results";
    // Kernels of several rows take these to follow each other without overlap.
    if (node.nb[1] < ggml_row_size(node.type, node.ne[0]) && node.ne[1] > 1) return "rows of the result overlap";
    if (input.nb[1] < ggml_row_size(input.type, input.ne[0]) && input.ne[1] > 1) return "rows of the input overlap";
    if (weight.nb[1] < ggml_row_size(weight.type, weight.ne[0]) && weight.ne[1] > 1)
        return "rows of the weights overlap";
    if (weight.extra) {
        // Repacked: the kernels read groups of rows as one block, and assert more than the plain ones.
        if (!ggml_is_contiguous(&weight)) return "repacked weights are viewed";
        if (weight.ne[3] != 1 || input.ne[3] != 1) return "repacked weights have no fourth dimension";
        if (!ggml_backend_dev_supports_op(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0), &node)) {
            return "no kernel for these repacked weights";
        }
    }
    return nullptr;
}

const char * check_mul_mat(const ggml_tensor & node) {
    const ggml_tensor & weight = src(node, 0);
    const ggml_tensor & input = src(node, 1);
    if (const char * reason = check_operands(node)) return reason;
    if (!has_shape(node, weight.ne[1], input.ne[1], input.ne[2], input.ne[3])) return "the result has the wrong shape";
    if (input.ne[2] % weight.ne[2] != 0 || input.ne[3] % weight.ne[3] != 0) return "the weights cannot be broadcast";
    if (param_i32(node, 1) == GGML_HINT_SRC0_IS_HADAMARD) {
        // Replaced by a transform in place, which never looks at the weights.
        if (weight.ne[0] != weight.ne[1] || (input.ne[0] & (input.ne[0] - 1)) != 0) return "no Hadamard matrix";
        return is_f32(input) || input.type == GGML_TYPE_F16 ? nullptr : "no kernel for this type of input";
    }
    const ggml_type native = ggml_get_type_traits_cpu(weight.type)->vec_dot_type;
    if (is_f32(input) || (is_float(input.type) && input.type == native)) return nullptr;
    if (input.type == GGML_TYPE_F16 && native == GGML_TYPE_F32) return nullptr;
    return "no kernel for this type of input";
}

const char * check_mul_mat_id(const ggml_tensor & node) {
    const ggml_tensor & experts = src(node, 0);
    const ggml_tensor & input = src(node, 1);
    const ggml_tensor & ids = src(node, 2);
    if (const char * reason = check_operands(node)) return reason;
    if (experts.ne[3] != 1 || input.ne[3] != 1 || ids.ne[2] != 1 || ids.ne[3] != 1) return "too many dimensions";
    if (!has_shape(node, experts.ne[1], ids.ne[0], input.ne[2], 1)) return "the result has the wrong shape";
    if (ids.type != GGML_TYPE_I32) return "the ids are not 32-bit integers";
    if (ids.ne[1] != input.ne[2] || ids.ne[0] % input.ne[1] != 0) return "the ids have the wrong shape";
    const ggml_type native = ggml_get_type_traits_cpu(experts.type)->vec_dot_type;
    if (!is_f32(input) && (!is_float(input.type) || input.type != native)) return "no kernel for this type of input";
    // The work buffer holds a row of ids for each expert. For experts of a real model's size that is less than their
    // results and themselves.
    const uint64_t table = 8 * static_cast<uint64_t>(experts.ne[2]);
    const uint64_t allowed = (64u << 20) + packed_bytes(experts) + 4 * packed_bytes(node);
    if (table > allowed || static_cast<uint64_t>(ids.ne[0] * ids.ne[1]) > allowed / table) return "too many experts";
    return nullptr;
}

const char * check_solve_tri(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & b = src(node, 1);
    if (!is_f32(a) || !is_f32(b) || !is_f32(node)) return "no kernel for this type";
    if (!ggml_is_contiguous(&a) || !ggml_is_contiguous(&b) || !ggml_is_contiguous(&node)) {
        return "a tensor is not contiguous";
    }
    if (!same_shape(b, node)) return "the result has another shape than the right side";
    if (!has_shape(a, b.ne[1], b.ne[1], b.ne[2], b.ne[3])) return "the shapes do not fit";
    return nullptr;
}

}  // namespace droid::rpc::rules
