#include "ggml-backend.h"
#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

// Work buffers of attention grow with the size of a head; real ones have at most 576.
constexpr int64_t max_head_size = 8192;

const char * check_soft_max(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor * mask = node.src[1];
    const ggml_tensor * sinks = node.src[2];
    if (!is_f32(a) || !is_f32(node)) return "no kernel for this type";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    if (mask) {
        if (mask->type != GGML_TYPE_F32 && mask->type != GGML_TYPE_F16) return "wrong type of the mask";
        if (!packed_row(*mask)) return "rows of the mask are not contiguous";
        if (mask->ne[0] != a.ne[0] || mask->ne[1] < a.ne[1] || a.ne[2] % mask->ne[2] != 0 ||
            a.ne[3] % mask->ne[3] != 0) {
            return "the mask has the wrong shape";
        }
    }
    if (sinks && (!is_f32(*sinks) || !packed_row(*sinks) || sinks->ne[0] != a.ne[2])) return "not one sink a head";
    return nullptr;
}

// The kernel fills its cache for whole rows and so reads ne0 / 2 frequency factors, where only n_dims / 2 are asked
// for, and made use of. Models have just these, so the rest may lie behind them, as long as it is in their buffer.
static bool factors_readable(const ggml_tensor & factors, int64_t count) {
    if (factors.ne[0] >= count) return true;
    if (!factors.buffer) return false;
    const uint64_t base = reinterpret_cast<uintptr_t>(ggml_backend_buffer_get_base(factors.buffer));
    const uint64_t first = reinterpret_cast<uintptr_t>(factors.data);
    const uint64_t end = base + ggml_backend_buffer_get_size(factors.buffer);
    return first >= base && first <= end && static_cast<uint64_t>(count) <= (end - first) / sizeof(float);
}

static const char * check_sections(const ggml_tensor & node) {
    int64_t sum = 0;
    for (int i = 0; i < 4; i++) {
        const int64_t section = param_i32(node, 11 + i);
        if (section < 0) return "a negative section";
        sum += section;
    }
    if (param_i32(node, 11) == 0 && param_i32(node, 12) == 0 && param_i32(node, 13) == 0) return "no section";
    if (sum > node.ne[0]) return "the sections exceed the row";
    return nullptr;
}

const char * check_rope(const ggml_tensor & node) {
    const ggml_tensor & a = src(node, 0);
    const ggml_tensor & positions = src(node, 1);
    const ggml_tensor * factors = node.src[2];
    if (a.type != GGML_TYPE_F32 && a.type != GGML_TYPE_F16) return "no kernel for this type";
    if (node.type != a.type) return "the result has another type than the operand";
    if (!same_shape(a, node)) return "the result has another shape than the operand";
    if (!packed_row(a) || !packed_row(node)) return "rows are not contiguous";
    const int64_t n_dims = param_i32(node, 1);
    const int64_t mode = param_i32(node, 2);
    const int64_t offset = param_i32(node, 15);
    // With no dimension to rotate the kernel's loop over the others does not end.
    if (n_dims < 2 || n_dims % 2 != 0 || node.ne[0] % 2 != 0) return "rows are not made of pairs";
    if (offset < 0 || offset % 2 != 0 || offset + n_dims > node.ne[0]) return "the rotated part exceeds the row";
    bool sections = true;
    switch (mode) {
        case GGML_ROPE_TYPE_NORMAL:
        case GGML_ROPE_TYPE_NEOX: sections = false; break;
        case GGML_ROPE_TYPE_MROPE:
        case GGML_ROPE_TYPE_IMROPE: break;
        case GGML_ROPE_TYPE_VISION:
            if (n_dims != node.ne[0] / 2 || offset != 0) return "vision rotates whole rows";
            break;
        default: return "unknown mode";
    }
    if (sections) {
        if (const char * reason = check_sections(node)) return reason;
    }
    if (positions.type != GGML_TYPE_I32 || !packed_row(positions)) return "positions are not a list of 32-bit integers";
    if (positions.ne[0] != node.ne[2] * (sections ? 4 : 1)) return "not one position a token";
    if (factors) {
        if (!is_f32(*factors) || !packed_row(*factors)) return "frequency factors are not a list of floats";
        if (factors->ne[0] < n_dims / 2 || !factors_readable(*factors, node.ne[0] / 2)) {
            return "too few frequency factors";
        }
    }
    return nullptr;
}

const char * check_flash_attn_ext(const ggml_tensor & node) {
    const ggml_tensor & q = src(node, 0);
    const ggml_tensor & k = src(node, 1);
    const ggml_tensor & v = src(node, 2);
    const ggml_tensor * mask = node.src[3];
    const ggml_tensor * sinks = node.src[4];
    if (!is_f32(q) || !is_f32(node)) return "queries and result are not F32";
    if (!is_weight(k.type) || !is_weight(v.type)) return "no kernel for this type of keys or values";
    if (!packed_row(q) || !packed_row(k) || !packed_row(v)) return "rows are not contiguous";
    // The kernel copies nb[1] bytes a row, whatever that is.
    if (!packed(node)) return "the result is not contiguous";
    if (k.ne[0] != q.ne[0] || v.ne[1] != k.ne[1]) return "the shapes do not fit";
    if (k.ne[0] > max_head_size || v.ne[0] > max_head_size) return "the heads are too large";
    if (q.ne[2] % k.ne[2] != 0 || q.ne[2] % v.ne[2] != 0 || q.ne[3] % k.ne[3] != 0 || q.ne[3] % v.ne[3] != 0) {
        return "keys or values cannot be broadcast";
    }
    if (!has_shape(node, v.ne[0], q.ne[2], q.ne[1], q.ne[3])) return "the result has the wrong shape";
    if (mask) {
        if (mask->type != GGML_TYPE_F16) return "the mask is not F16";
        if (!packed_row(*mask)) return "rows of the mask are not contiguous";
        if (mask->ne[0] < k.ne[1] || mask->ne[1] < q.ne[1] || q.ne[2] % mask->ne[2] != 0 ||
            q.ne[3] % mask->ne[3] != 0) {
            return "the mask has the wrong shape";
        }
    }
    if (sinks && (!is_f32(*sinks) || !packed_row(*sinks) || sinks->ne[0] != q.ne[2])) return "not one sink a head";
    const int64_t precision = param_i32(node, 3);
    if (precision != GGML_PREC_DEFAULT && precision != GGML_PREC_F32) return "unknown precision";
    return nullptr;
}

const char * check_lightning_indexer(const ggml_tensor & node) {
    const ggml_tensor & q = src(node, 0);
    const ggml_tensor & k = src(node, 1);
    const ggml_tensor & weights = src(node, 2);
    const ggml_tensor & mask = src(node, 3);
    if (!is_f32(q) || !is_f32(weights) || !is_f32(node) || mask.type != GGML_TYPE_F16) return "wrong types";
    if (!is_weight(k.type)) return "no kernel for this type of keys";
    if (!packed_row(q) || !packed_row(k) || !packed_row(weights) || !packed_row(mask) || !packed_row(node)) {
        return "rows are not contiguous";
    }
    const int64_t heads = q.ne[1];
    const int64_t tokens = q.ne[2];
    const int64_t streams = q.ne[3];
    const int64_t keys = k.ne[2];
    if (!has_shape(k, q.ne[0], 1, keys, streams)) return "the keys have the wrong shape";
    if (!has_shape(weights, heads, tokens, 1, streams)) return "the weights have the wrong shape";
    if (!has_shape(mask, keys, tokens, 1, mask.ne[3]) || streams % mask.ne[3] != 0) {
        return "the mask has the wrong shape";
    }
    if (!has_shape(node, keys, tokens, 1, streams)) return "the result has the wrong shape";
    return nullptr;
}

}  // namespace droid::rpc::rules
