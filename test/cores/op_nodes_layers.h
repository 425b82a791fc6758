#pragma once

#include "op_node_tensors.h"

// Nodes that models are named after: matrix products, attention, recurrences.
namespace droid::test::nodes {

inline T mul_mat(C c, R r) {
    const ggml_type type = weight_type(r);
    const int64_t n = row_of(r, type, 512), n2 = r.in(1, 3), n3 = r.in(1, 2);
    T w = tensor(c, r, type, n, r.in(1, 40), n2, n3);
    ggml_type input = GGML_TYPE_F32;
    if ((type == GGML_TYPE_F16 || type == GGML_TYPE_BF16) && r.chance(30)) input = type;
    T x = tensor(c, r, input, n, r.in(1, 20), n2 * r.in(1, 2), n3 * r.in(1, 2));
    if (r.chance(20)) x = ggml_permute(c, ggml_new_tensor_4d(c, input, n, x->ne[2], x->ne[1], x->ne[3]), 0, 2, 1, 3);
    T node = ggml_mul_mat(c, w, x);
    if (r.chance(30)) ggml_prec_set_acc(node, GGML_PREC_F32);
    return node;
}

inline T hadamard(C c, R r) {
    const int64_t n = 1 << r.in(0, 8);
    T node = ggml_mul_mat(c, f32(c, n, n), tensor(c, r, GGML_TYPE_F32, n, r.in(1, 5), r.in(1, 3), 1));
    ggml_mul_mat_set_hint(node, GGML_HINT_SRC0_IS_HADAMARD);
    return node;
}

inline T mul_mat_id(C c, R r) {
    const ggml_type type = weight_type(r);
    const int64_t n = row_of(r, type, 256), used = r.in(1, 4), tokens = r.in(1, 9);
    T experts = ggml_new_tensor_3d(c, type, n, r.in(1, 33), r.in(1, 8));
    T all = i32(c, used + r.in(0, 4), tokens);
    return ggml_mul_mat_id(c, experts, f32(c, n, r.chance(50) ? used : 1, tokens),
                           ggml_view_2d(c, all, used, tokens, all->nb[1], 0));
}

inline T mul_mat_repacked(C c, R r) {
    const ggml_type type =
        r.of({GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_K, GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL, GGML_TYPE_Q2_K});
    const int64_t n = row_of(r, type, 512);
    T w = ggml_new_tensor_2d(c, type, n, 16 * r.in(1, 4));
    return ggml_mul_mat(c, w, tensor(c, r, GGML_TYPE_F32, n, r.in(1, 20), r.in(1, 3), 1));
}

inline T mul_mat_id_repacked(C c, R r) {
    const ggml_type type = r.of({GGML_TYPE_Q4_0, GGML_TYPE_Q4_K, GGML_TYPE_Q8_0, GGML_TYPE_IQ4_NL});
    const int64_t n = row_of(r, type, 256), used = r.in(1, 4), tokens = r.in(1, 9);
    T experts = ggml_new_tensor_3d(c, type, n, 8 * r.in(1, 4), 1 + used + r.in(0, 4));
    return ggml_mul_mat_id(c, experts, f32(c, n, r.chance(50) ? used : 1, tokens), i32(c, used, tokens));
}

inline T solve_tri(C c, R r) {
    const int64_t n = r.in(1, 12), n2 = r.in(1, 3), n3 = r.in(1, 2);
    return ggml_solve_tri(c, f32(c, n, n, n2, n3), f32(c, r.in(1, 9), n, n2, n3), true, true, false);
}

inline T soft_max(C c, R r) {
    T a = f32(c, r.in(1, 60), r.in(1, 6), r.in(1, 4), r.in(1, 2));
    T mask = r.chance(60) ? ggml_new_tensor_4d(c, r.of({GGML_TYPE_F32, GGML_TYPE_F16}), a->ne[0], a->ne[1] + r.in(0, 2),
                                               r.chance(30) ? a->ne[2] : 1, r.chance(50) ? a->ne[3] : 1)
                          : nullptr;
    T node = ggml_soft_max_ext(c, a, mask, 0.3f, mask && r.chance(30) ? 8.0f : 0.0f);
    if (r.chance(30)) ggml_soft_max_add_sinks(node, f32(c, a->ne[2]));
    return node;
}

inline T rope(C c, R r) {
    const int64_t n = 2 * r.in(1, 40), tokens = r.in(1, 5);
    T a = tensor(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_F16}), n, r.in(1, 4), tokens, r.in(1, 2));
    const int dims = static_cast<int>(2 * r.in(1, n / 2));
    const int mode = r.of({GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX});
    T factors = r.chance(40) ? f32(c, n / 2) : nullptr;
    const auto build = r.chance(60) ? ggml_rope_ext : r.chance(50) ? ggml_rope_ext_inplace : ggml_rope_ext_back;
    T node = build(c, a, i32(c, tokens), factors, dims, mode, 4096, 1e4f, 1, r.chance(50) ? 1.0f : 0.0f, 1, 32, 1);
    if (r.chance(30)) ggml_rope_set_offset(node, static_cast<int>(n - dims));
    return node;
}

inline T rope_multi(C c, R r) {
    const int64_t n = 2 * r.in(4, 32), tokens = r.in(1, 5);
    int sections[4] = {2, 1, 1, 0};
    const int mode = r.of({GGML_ROPE_TYPE_MROPE, GGML_ROPE_TYPE_IMROPE, GGML_ROPE_TYPE_VISION});
    const int dims = static_cast<int>(mode == GGML_ROPE_TYPE_VISION ? n / 2 : n);
    if (dims % 2) return rope(c, r);
    return ggml_rope_multi(c, f32(c, n, r.in(1, 4), tokens), i32(c, 4 * tokens), nullptr, dims, sections, mode, 4096,
                           1e6f, 1, 0, 1, 32, 1);
}

inline T attention(C c, R r, int64_t queries, int64_t keys) {
    const ggml_type type = r.chance(60) ? r.of({GGML_TYPE_F16, GGML_TYPE_F32}) : cache_type(r);
    const ggml_type type_v = r.chance(80) ? type : cache_type(r);
    const int64_t dk = row_of(r, type, 96), dv = r.chance(70) && type == type_v ? dk : row_of(r, type_v, 96);
    const int64_t heads_kv = r.in(1, 2), heads = heads_kv * r.in(1, 3), streams = r.in(1, 2);
    T q = ggml_permute(c, ggml_new_tensor_4d(c, GGML_TYPE_F32, dk, heads, queries, streams), 0, 2, 1, 3);
    T k = ggml_permute(c, ggml_new_tensor_4d(c, type, dk, heads_kv, keys, streams), 0, 2, 1, 3);
    T v = ggml_permute(c, ggml_new_tensor_4d(c, type_v, dv, heads_kv, keys, streams), 0, 2, 1, 3);
    T mask =
        r.chance(70) ? ggml_new_tensor_4d(c, GGML_TYPE_F16, keys, queries, 1, r.chance(50) ? streams : 1) : nullptr;
    T node =
        ggml_flash_attn_ext(c, q, k, v, mask, 0.2f, mask && r.chance(30) ? 8.0f : 0.0f, r.chance(30) ? 50.0f : 0.0f);
    if (r.chance(30)) ggml_flash_attn_ext_add_sinks(node, f32(c, heads));
    ggml_prec_set_acc(node, GGML_PREC_F32);
    return node;
}

inline T flash_attn(C c, R r) {
    return attention(c, r, r.in(1, 4), r.in(1, 40));
}
inline T flash_attn_decode(C c, R r) {
    return attention(c, r, 1, r.in(512, 600));
}
inline T flash_attn_prompt(C c, R r) {
    return attention(c, r, r.in(64, 70), r.in(1, 130));
}

inline T lightning_indexer(C c, R r) {
    const ggml_type type = cache_type(r);
    const int64_t n = row_of(r, type, 64), heads = r.in(1, 4), tokens = r.in(1, 4), streams = r.in(1, 2);
    const int64_t keys = r.in(1, 20);
    return ggml_lightning_indexer(c, f32(c, n, heads, tokens, streams),
                                  ggml_new_tensor_4d(c, type, n, 1, keys, streams), f32(c, heads, tokens, 1, streams),
                                  ggml_new_tensor_4d(c, GGML_TYPE_F16, keys, tokens, 1, r.chance(50) ? streams : 1));
}

inline T ssm_conv(C c, R r) {
    const int64_t taps = r.in(1, 4), inner = r.in(1, 20);
    return ggml_ssm_conv(c, f32(c, taps - 1 + r.in(1, 5), inner, r.in(1, 3)), f32(c, taps, inner));
}

inline T ssm_scan(C c, R r) {
    const int64_t state = 16 * r.in(1, 2), dim = r.in(1, 6), groups = r.in(1, 2), heads = groups * r.in(1, 3);
    const int64_t tokens = r.in(1, 4), seqs = r.in(1, 3);
    const int64_t snapshots = r.chance(60) ? 1 : r.in(1, 4);
    T b = f32(c, state, groups, tokens, seqs);
    return ggml_ssm_scan(c, f32(c, state, dim, heads, seqs + r.in(0, 2)), f32(c, dim, heads, tokens, seqs),
                         f32(c, heads, tokens, seqs), f32(c, snapshots > 1 || r.chance(50) ? 1 : state, heads), b,
                         ggml_dup_tensor(c, b), i32(c, seqs), snapshots);
}

inline T wkv(C c, R r) {
    const int64_t kind = r.in(0, 2), heads = r.in(1, 3), seqs = r.in(1, 3), tokens = seqs * r.in(1, 3);
    const int64_t size = kind == 1 ? 64 : r.in(1, 20);
    const auto x = [&] { return f32(c, size, heads, tokens); };
    T state = f32(c, size * size * heads, seqs);
    switch (kind) {
        case 0: return ggml_rwkv_wkv6(c, x(), x(), x(), f32(c, size, heads), x(), state);
        case 1: return ggml_rwkv_wkv7(c, x(), x(), x(), x(), x(), x(), state);
        default: return ggml_gated_linear_attn(c, x(), x(), x(), x(), state, 0.3f);
    }
}

inline T gated_delta_net(C c, R r) {
    const int64_t size = r.in(1, 16), heads_k = r.in(1, 2), heads = heads_k * r.in(1, 2);
    const int64_t tokens = r.in(1, 4), seqs = r.in(1, 3);
    return ggml_gated_delta_net(c, tensor(c, r, GGML_TYPE_F32, size, heads_k, tokens, seqs),
                                tensor(c, r, GGML_TYPE_F32, size, heads_k, tokens, seqs),
                                tensor(c, r, GGML_TYPE_F32, size, heads, tokens, seqs),
                                f32(c, r.chance(50) ? 1 : size, heads, tokens, seqs), f32(c, 1, heads, tokens, seqs),
                                f32(c, size, size, heads, seqs), r.in(1, 3));
}

inline T hc_comb(C c, R r) {
    return ggml_dsv4_hc_comb(c, f32(c, 24, r.in(1, 5)), f32(c, 3), f32(c, 24), 1e-6f, 20);
}
inline T hc_pre(C c, R r) {
    const int64_t hc = r.in(1, 4), tokens = r.in(1, 5);
    T x = f32(c, r.in(1, 30), hc, tokens);
    return r.chance(50) ? ggml_dsv4_hc_pre(c, x, f32(c, hc, tokens))
                        : ggml_dsv4_hc_pre_gated(c, x, ggml_dup_tensor(c, x), 2.0f);
}
inline T hc_post(C c, R r) {
    const int64_t hc = r.in(1, 4), tokens = r.in(1, 5), n = r.in(1, 30);
    return ggml_dsv4_hc_post(c, f32(c, n, tokens), f32(c, n, hc, tokens), f32(c, hc, tokens),
                             r.chance(50) ? f32(c, hc, hc, tokens) : nullptr);
}

}  // namespace droid::test::nodes
