#include <initializer_list>

#include "rpc/server/op_rules.h"

namespace droid::rpc::rules {

const char * check_ssm_conv(const ggml_tensor & node) {
    const ggml_tensor & x = src(node, 0);
    const ggml_tensor & kernel = src(node, 1);
    if (!is_f32(x) || !is_f32(kernel) || !is_f32(node)) return "no kernel for this type";
    if (!packed_row(x) || !packed_row(kernel) || !packed_row(node)) return "rows are not contiguous";
    if (x.nb[1] != x.ne[0] * sizeof(float) || kernel.nb[1] != kernel.ne[0] * sizeof(float)) return "rows are apart";
    const int64_t tokens = x.ne[0] - kernel.ne[0] + 1;
    if (tokens < 1 || x.ne[3] != 1) return "the input has the wrong shape";
    if (!has_shape(kernel, kernel.ne[0], x.ne[1], 1, 1)) return "the kernel has the wrong shape";
    if (!has_shape(node, x.ne[1], tokens, x.ne[2], 1)) return "the result has the wrong shape";
    return nullptr;
}

const char * check_ssm_scan(const ggml_tensor & node) {
    const ggml_tensor & state = src(node, 0);
    const ggml_tensor & x = src(node, 1);
    const ggml_tensor & dt = src(node, 2);
    const ggml_tensor & a = src(node, 3);
    const ggml_tensor & b = src(node, 4);
    const ggml_tensor & c = src(node, 5);
    const ggml_tensor & ids = src(node, 6);
    for (int i = 0; i < 6; i++) {
        if (!is_f32(src(node, i)) || !packed_row(src(node, i))) return "a source is no F32 with contiguous rows";
    }
    if (!is_f32(node) || ids.type != GGML_TYPE_I32) return "wrong types";
    const int64_t d_state = state.ne[0];
    const int64_t dim = state.ne[1];
    const int64_t heads = state.ne[2];
    const int64_t tokens = x.ne[2];
    const int64_t seqs = x.ne[3];
    if (!packed(state) || !packed(node) || !ggml_is_contiguous(&dt) || !ggml_is_contiguous(&a)) {
        return "a tensor is not contiguous";
    }
#ifdef __aarch64__
    // The SVE kernel reads and writes whole vectors, of up to 512 bits.
    if (d_state % 16 != 0) return "the state is not made of whole vectors";
#endif
    if (!has_shape(x, dim, heads, tokens, seqs)) return "the input has the wrong shape";
    if (!has_shape(dt, heads, tokens, seqs, 1)) return "dt has the wrong shape";
    if (!has_shape(b, d_state, b.ne[1], tokens, seqs) || !same_shape(b, c)) return "B or C has the wrong shape";
    if (heads % b.ne[1] != 0) return "the heads cannot be grouped";
    const uint64_t state_row = d_state * sizeof(float);
    if (x.nb[1] != dim * sizeof(float) || b.nb[1] != state_row || c.nb[1] != state_row) return "rows are apart";
    const int64_t snapshots = param_i32(node, 0);
    if (snapshots < 1) return "no state to write";
    if (!has_shape(a, a.ne[0], heads, 1, 1)) return "A has the wrong shape";
    if (a.ne[0] != 1 && (a.ne[0] != d_state || snapshots != 1)) return "A has the wrong shape";
    if (!has_shape(ids, seqs, 1, 1, 1) || !packed_row(ids)) return "not one id a sequence";
    // Of the results of x behind which the states are, one divides them all: no product here can overflow.
    const int64_t states = ggml_nelements(&node) - ggml_nelements(&x);
    const int64_t snapshot_rows = dim * heads * seqs;
    if (states < 1 || states % snapshots != 0 || (states / snapshots) % d_state != 0 ||
        states / snapshots / d_state != snapshot_rows) {
        return "the result has the wrong size";
    }
    return nullptr;
}

const char * check_wkv(const ggml_tensor & node) {
    const int n_state = node.op == GGML_OP_GATED_LINEAR_ATTN ? 4 : node.op == GGML_OP_RWKV_WKV6 ? 5 : 6;
    const ggml_tensor & first = src(node, 0);
    const ggml_tensor & state = src(node, n_state);
    const int64_t head_size = first.ne[0];
    const int64_t heads = first.ne[1];
    const int64_t tokens = first.ne[2];
    const int64_t seqs = state.ne[1];
    if (!is_f32(node) || !packed(node)) return "the result is no contiguous F32";
    for (int i = 0; i <= n_state; i++) {
        if (!is_f32(src(node, i)) || !ggml_is_contiguous(&src(node, i))) return "a source is no contiguous F32";
        if (i == n_state) continue;
        // The bonus of RWKV 6, one for all tokens.
        if (node.op == GGML_OP_RWKV_WKV6 && i == 3) {
            if (ggml_nelements(&src(node, i)) != head_size * heads) return "the bonus has the wrong size";
        } else if (!has_shape(src(node, i), head_size, heads, tokens, 1)) {
            return "the shapes do not fit";
        }
    }
    // The vectors of RWKV 7's kernel, up to 64 floats at once with AVX-512, have no remainder. Its heads are of 64.
    if (node.op == GGML_OP_RWKV_WKV7 && head_size % 64 != 0) return "heads are not made of whole vectors";
    if (tokens % seqs != 0) return "sequences of different lengths";
    if (!has_shape(node, head_size * heads, tokens + head_size * seqs, 1, 1)) return "the result has the wrong shape";
    // head_size * heads is a row of the result, so the product fits.
    const int64_t state_size = ggml_nelements(&state);
    if (state_size % seqs != 0 || state_size / seqs != node.ne[0] * head_size) return "the state has the wrong size";
    return nullptr;
}

const char * check_gated_delta_net(const ggml_tensor & node) {
    const ggml_tensor & q = src(node, 0);
    const ggml_tensor & k = src(node, 1);
    const ggml_tensor & v = src(node, 2);
    const ggml_tensor & g = src(node, 3);
    const ggml_tensor & beta = src(node, 4);
    const ggml_tensor & state = src(node, 5);
    for (int i = 0; i < 6; i++) {
        if (!is_f32(src(node, i))) return "no kernel for this type";
    }
    if (!is_f32(node) || !packed(node)) return "the result is no contiguous F32";
    if (!packed_row(q) || !packed_row(k) || !packed_row(v)) return "rows are not contiguous";
    if (!ggml_is_contiguous(&g) || !ggml_is_contiguous(&beta) || !ggml_is_contiguous(&state)) {
        return "a tensor is not contiguous";
    }
    const int64_t size = v.ne[0];
    const int64_t heads = v.ne[1];
    const int64_t tokens = v.ne[2];
    const int64_t seqs = v.ne[3];
    for (const ggml_tensor * t : {&q, &k}) {
        if (t->ne[0] != size || t->ne[2] != tokens || seqs % t->ne[3] != 0) return "the shapes do not fit";
    }
    if (!has_shape(g, g.ne[0], heads, tokens, seqs) || (g.ne[0] != 1 && g.ne[0] != size)) {
        return "the gate has the wrong shape";
    }
    if (!has_shape(beta, 1, heads, tokens, seqs)) return "beta has the wrong shape";
    if (!has_shape(state, size, size, heads, seqs)) return "the state has the wrong shape";
    const int64_t snapshots = param_i32(node, 0);
    if (snapshots < 1) return "no state to write";
    // size * seqs are at most the rows of the state, so the product fits.
    if (!has_shape(node, size * heads, tokens * seqs + snapshots * (size * seqs), 1, 1)) {
        return "the result has the wrong shape";
    }
    return nullptr;
}

const char * check_hc_comb(const ggml_tensor & node) {
    const ggml_tensor & mixes = src(node, 0);
    const ggml_tensor & scale = src(node, 1);
    const ggml_tensor & base = src(node, 2);
    if (!is_f32(mixes) || !is_f32(scale) || !is_f32(base) || !is_f32(node)) return "no kernel for this type";
    constexpr int64_t hc = 4;
    constexpr int64_t mix = (2 + hc) * hc;
    if (!has_shape(mixes, mix, mixes.ne[1], 1, 1) || scale.ne[0] < 3 || base.ne[0] != mix) {
        return "the shapes do not fit";
    }
    if (!has_shape(node, hc, hc, mixes.ne[1], 1)) return "the result has the wrong shape";
    // 20 in the model; a bound because each costs time for every token.
    const int64_t iterations = param_i32(node, 1);
    if (iterations < 1 || iterations > 1000) return "an impossible number of iterations";
    return nullptr;
}

const char * check_hc_pre(const ggml_tensor & node) {
    const ggml_tensor & x = src(node, 0);
    const ggml_tensor & weights = src(node, 1);
    if (!is_f32(x) || !is_f32(weights) || !is_f32(node)) return "no kernel for this type";
    const bool gated = param_i32(node, 1) != 0;
    if (x.ne[3] != 1) return "the input has the wrong shape";
    if (gated ? !same_shape(weights, x) : !has_shape(weights, x.ne[1], x.ne[2], 1, 1)) {
        return "the weights have the wrong shape";
    }
    if (!has_shape(node, x.ne[0], x.ne[2], 1, 1)) return "the result has the wrong shape";
    return nullptr;
}

const char * check_hc_post(const ggml_tensor & node) {
    const ggml_tensor & x = src(node, 0);
    const ggml_tensor & residual = src(node, 1);
    const ggml_tensor & post = src(node, 2);
    const ggml_tensor * comb = node.src[3];
    if (!is_f32(x) || !is_f32(residual) || !is_f32(post) || !is_f32(node)) return "no kernel for this type";
    const int64_t hc = residual.ne[1];
    const int64_t tokens = x.ne[1];
    if (!has_shape(residual, x.ne[0], hc, tokens, 1)) return "the residual has the wrong shape";
    if (!has_shape(x, x.ne[0], tokens, 1, 1)) return "the input has the wrong shape";
    if (!has_shape(post, hc, tokens, 1, 1)) return "the weights have the wrong shape";
    if (comb && (!is_f32(*comb) || !has_shape(*comb, hc, hc, tokens, 1))) return "the weights have the wrong shape";
    if (!same_shape(node, residual)) return "the result has the wrong shape";
    return nullptr;
}

}  // namespace droid::rpc::rules
