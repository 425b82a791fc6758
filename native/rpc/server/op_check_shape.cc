#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

const char * check_copy(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor * target = node.src[1];
    if (ggml_nelements(&a) != ggml_nelements(&node)) return "the result has another number of elements";
    if (ggml_nelements(&a) > max_copied_elements) return "too many elements";
    if (target && (target->type != node.type || !same_shape(*target, node) || !same_strides(*target, node))) {
        return "the target is laid out otherwise than the result";
    }
    const bool quantized = ggml_is_quantized(a.type);
    if (a.type == node.type) {
        if (!quantized) return nullptr;
        if (!is_weight(a.type)) return "no kernel for this type";
        // The kernel takes elements for blocks when it copies to another shape.
        const bool whole = ggml_is_contiguous(&a) && ggml_is_contiguous(&node);
        return whole || same_shape(a, node) ? nullptr : "quantized rows are copied to another shape";
    }
    if (node.op == GGML_OP_CONT) return "the result has another type than the operand";
    if (quantized) {
        if (!is_weight(a.type) || !is_f32(node)) return "no kernel for these types";
        if (!target) return "the target is missing";
        if (!packed_row(node)) return "rows are not contiguous";
        if (node.ne[0] % ggml_blck_size(a.type) != 0 && !packed(node)) return "blocks span rows of the result";
        return nullptr;
    }
    const bool to_float = is_float(node.type);
    if (is_float(a.type) && to_float) return nullptr;
    if (a.type == GGML_TYPE_F32 && node.type == GGML_TYPE_I32) return nullptr;
    if (a.type == GGML_TYPE_I32 && node.type == GGML_TYPE_F32) return nullptr;
    if (!is_float(a.type) || !is_cache_type(node.type)) return "no kernel for these types";
    if (!packed_row(a)) return "rows are not contiguous";
    if (!ggml_is_contiguous(&node)) return "the result is not contiguous";
    if (a.ne[0] % ggml_blck_size(node.type) != 0) return "rows are not made of whole blocks";
    // The work buffer is sized by the rows of the result and filled with those of the operand.
    if (a.ne[0] > node.ne[0]) return "the operand has longer rows than the result";
    return nullptr;
}

const char * check_set(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & b = src(node, 1);
    if (a.type != GGML_TYPE_F32 && a.type != GGML_TYPE_I32) return "no kernel for this type";
    if (b.type != a.type || node.type != a.type) return "the types differ";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!ggml_is_contiguous(&a) || !ggml_is_contiguous(&node)) return "a tensor is not contiguous";
    if (!packed_row(b)) return "rows are not contiguous";
    const int64_t item = sizeof(float);
    int64_t end = param_i32(node, 3) + b.ne[0] * item;
    if (param_i32(node, 3) < 0 || param_i32(node, 3) % item != 0) return "the offset is negative or unaligned";
    for (int i = 0; i < 3; i++) {
        const int64_t stride = param_i32(node, i);
        if (stride < 0 || stride % item != 0) return "a stride is negative or unaligned";
        end += (b.ne[i + 1] - 1) * stride;
    }
    if (end > static_cast<int64_t>(ggml_nbytes(&node))) return "the part exceeds the whole";
    return nullptr;
}

const char * check_repeat(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_float(a.type) && a.type != GGML_TYPE_I32) return "no kernel for this type";
    if (node.type != a.type) return "the result has another type than the operand";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (!repeats_to(a, node)) return "the result is no repetition of the operand";
    return nullptr;
}

const char * check_concat(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & b = src(node, 1);
    const int64_t dim = param_i32(node, 0);
    if (dim < 0 || dim >= GGML_MAX_DIMS) return "no such dimension";
    if (!is_weight(a.type) && a.type != GGML_TYPE_I32) return "no kernel for this type";
    if (b.type != a.type || node.type != a.type) return "the types differ";
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        if (i == dim ? node.ne[i] != a.ne[i] + b.ne[i] : node.ne[i] != a.ne[i] || node.ne[i] != b.ne[i]) {
            return "the shapes do not fit";
        }
    }
    if (ggml_is_quantized(a.type) && (!packed_row(a) || !packed_row(b) || !packed_row(node))) {
        return "rows are not contiguous";
    }
    return nullptr;
}

const char * check_pad(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!packed(node)) return "the result is not contiguous";
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        const int64_t left = param_i32(node, 2 * i);
        const int64_t right = param_i32(node, 2 * i + 1);
        if (left < 0 || right < 0) return "negative padding";
        if (node.ne[i] != a.ne[i] + left + right) return "the result has the wrong size";
    }
    if (param_i32(node, 8) != 0) return "circular padding";
    return nullptr;
}

const char * check_get_rows(const ggml_tensor & node) {
    const ggml_tensor & table = src(node, 0);
    const ggml_tensor & ids = src(node, 1);
    if (!is_weight(table.type) && table.type != GGML_TYPE_I32) return "no kernel for this type";
    if (node.type != (table.type == GGML_TYPE_I32 ? GGML_TYPE_I32 : GGML_TYPE_F32)) return "wrong type of the result";
    if (ids.type != GGML_TYPE_I32) return "the indices are not 32-bit integers";
    if (!packed_row(table) || !packed_row(node)) return "rows are not contiguous";
    if (ids.ne[1] != table.ne[2] || ids.ne[2] != table.ne[3] || ids.ne[3] != 1)
        return "the indices have the wrong shape";
    if (!has_shape(node, table.ne[0], ids.ne[0], ids.ne[1], ids.ne[2]))
        return "the result does not hold one row an index";
    return nullptr;
}

const char * check_set_rows(const ggml_tensor & node) {
    const ggml_tensor & rows = src(node, 0);
    const ggml_tensor & ids = src(node, 1);
    // The work buffer for rows of F16 is sized for one thread and used by all; plain copies need none.
    const bool copied = rows.type == GGML_TYPE_F16 && node.type == GGML_TYPE_F16;
    if (!copied && (rows.type != GGML_TYPE_F32 || !is_cache_type(node.type))) return "no safe kernel for these types";
    if (ids.type != GGML_TYPE_I32 && ids.type != GGML_TYPE_I64) return "the indices are not integers";
    if (!packed_row(rows) || !packed_row(node)) return "rows are not contiguous";
    if (rows.ne[0] != node.ne[0] || rows.ne[2] != node.ne[2] || rows.ne[3] != node.ne[3])
        return "the shapes do not fit";
    if (ids.ne[0] != rows.ne[1] || rows.ne[2] % ids.ne[1] != 0 || rows.ne[3] % ids.ne[2] != 0 || ids.ne[3] != 1) {
        return "the indices have the wrong shape";
    }
    const ggml_tensor * whole = node.src[2];
    if (whole && (whole->type != node.type || !same_shape(*whole, node) || !same_strides(*whole, node))) {
        return "the target is laid out otherwise than the result";
    }
    return nullptr;
}

// Only the one-dimensional kind, of audio decoders.
const char * check_im2col(const ggml_tensor & node) {
    const ggml_tensor & kernel = src(node, 0);
    const ggml_tensor & image = src(node, 1);
    if (node.type != GGML_TYPE_F16 && node.type != GGML_TYPE_F32) return "no kernel for this type";
    if (image.type != GGML_TYPE_F32 && (image.type != GGML_TYPE_F16 || node.type != GGML_TYPE_F16)) {
        return "no kernel for this type";
    }
    if (param_i32(node, 6) != 0) return "not one-dimensional";
    if (!packed_row(image)) return "rows are not contiguous";
    if (!packed(node)) return "the result is not contiguous";
    // The kernel keeps them in an int.
    if (image.nb[1] > INT32_MAX || image.nb[2] > INT32_MAX) return "the strides are too large";
    if (image.ne[3] != 1 || node.ne[3] != 1) return "not three-dimensional";
    if (node.ne[0] != image.ne[1] * kernel.ne[0] || node.ne[2] != image.ne[2]) return "the result has the wrong size";
    return nullptr;
}

}  // namespace droid::rpc::rules
