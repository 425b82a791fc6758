#pragma once

#include <cmath>

#include "op_node_tensors.h"

// Nodes that work element by element or row by row.
namespace droid::test::nodes {

template <T (*op)(C, T, T)>
inline T binary(C c, R r) {
    const ggml_type type = float_type(r);
    T a = any(c, r, type);
    T b = ggml_new_tensor_4d(c, r.chance(50) ? type : GGML_TYPE_F32, r.chance(70) ? a->ne[0] : 1,
                             r.chance(50) ? a->ne[1] : 1, r.chance(50) ? a->ne[2] : 1, r.chance(50) ? a->ne[3] : 1);
    if (r.chance(20) && a->ne[0] % 2 == 0) {  // a column of a transposed matrix
        T whole = ggml_new_tensor_2d(c, b->type, a->ne[1], a->ne[0]);
        b = ggml_permute(c, whole, 1, 0, 2, 3);
    }
    return op(c, a, b);
}

template <T (*op)(C, T)>
inline T map(C c, R r) {
    return op(c, any(c, r, float_type(r)));
}

template <T (*op)(C, T)>
inline T map_f32(C c, R r) {
    return op(c, packed(c, r, GGML_TYPE_F32));
}

inline T unary(C c, R r) {
    const ggml_unary_op op = static_cast<ggml_unary_op>(r.in(0, GGML_UNARY_OP_COUNT - 1));
    if (op == GGML_UNARY_OP_XIELU) return ggml_xielu(c, packed(c, r, GGML_TYPE_F32), 0.8f, 0.8f, 0.5f, -1e-6f);
    return ggml_unary(c, any(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_F16})), op);
}

inline T glu(C c, R r) {
    const ggml_type type = r.of({GGML_TYPE_F32, GGML_TYPE_F16});
    T a = ggml_new_tensor_3d(c, type, 2 * r.in(1, 20), r.in(1, 5), r.in(1, 3));
    switch (r.in(0, 8)) {
        case 0: return ggml_reglu(c, a);
        case 1: return ggml_geglu(c, a);
        case 2: return ggml_swiglu(c, a);
        case 3: return ggml_swiglu_split(c, a, ggml_dup_tensor(c, a));
        case 4: return ggml_geglu_split(c, a, ggml_dup_tensor(c, a));
        case 5: return ggml_reglu_split(c, a, ggml_dup_tensor(c, a));
        case 6: {
            T x = f32(c, r.in(1, 30), r.in(1, 5));
            return ggml_swiglu_oai(c, x, ggml_dup_tensor(c, x), 1.702f, 7.0f);
        }
        case 7: return ggml_swiglu_clamp(c, a, ggml_dup_tensor(c, a), 7.0f);
        default: {  // the halves of one matrix
            T half = ggml_view_3d(c, a, a->ne[0] / 2, a->ne[1], a->ne[2], a->nb[1], a->nb[2], 0);
            T other = ggml_view_3d(c, a, a->ne[0] / 2, a->ne[1], a->ne[2], a->nb[1], a->nb[2], a->ne[0] / 2 * a->nb[0]);
            return ggml_geglu_quick_split(c, half, other);
        }
    }
}

inline T add_id(C c, R r) {
    const int64_t n = r.in(1, 40), used = r.in(1, 4), tokens = r.in(1, 5);
    T all = i32(c, used + r.in(0, 4), tokens);
    T ids = ggml_view_2d(c, all, used, tokens, all->nb[1], 0);
    return ggml_add_id(c, f32(c, n, used, tokens), f32(c, n, r.in(1, 8)), ids);
}

inline T scale(C c, R r) {
    T a = packed(c, r, GGML_TYPE_F32);
    return r.chance(30) ? ggml_scale_inplace(c, a, 0.5f) : ggml_scale_bias(c, a, 2, r.chance(50) ? 1.0f : 0.0f);
}

inline T clamp(C c, R r) {
    if (r.chance(50)) return ggml_clamp(c, packed(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_F16})), -1, 1);
    T whole = f32(c, 2 * r.in(1, 10), r.in(1, 4), r.in(1, 3));
    T half = ggml_view_3d(c, whole, whole->ne[0] / 2, whole->ne[1], whole->ne[2], whole->nb[1], whole->nb[2], 0);
    return ggml_clamp(c, half, -INFINITY, 7);
}

inline T fill(C c, R r) {
    return ggml_fill(c, packed(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_F16})), -INFINITY);
}

inline T tri(C c, R r) {
    const int64_t n = r.in(1, 20);
    return ggml_tri(c, f32(c, n, n, r.in(1, 3), r.in(1, 3)), static_cast<ggml_tri_type>(r.in(0, 3)));
}

inline T arange(C c, R r) {
    return ggml_arange(c, 0, static_cast<float>(r.in(1, 100)), 1);
}

inline T norm(C c, R r) {
    return ggml_norm(c, any(c, r, GGML_TYPE_F32), 1e-5f);
}
inline T rms_norm(C c, R r) {
    return ggml_rms_norm(c, any(c, r, GGML_TYPE_F32), 1e-6f);
}
inline T l2_norm(C c, R r) {
    return ggml_l2_norm(c, any(c, r, GGML_TYPE_F32), 1e-12f);
}
inline T group_norm(C c, R r) {
    const int64_t channels = r.in(1, 12);
    return ggml_group_norm(c, f32(c, r.in(1, 20), r.in(1, 3), channels), static_cast<int>(r.in(1, channels)), 1e-6f);
}

inline T norm_weighted(C c, R r) {
    T a = rms_norm(c, r);
    T w = f32(c, a->ne[0], r.chance(30) ? a->ne[1] : 1);
    return r.chance(90) || !ggml_are_same_shape(a, w) ? ggml_mul(c, a, w) : ggml_mul(c, w, a);
}

inline T argmax(C c, R r) {
    return ggml_argmax(c, f32(c, r.in(1, 60), r.in(1, 5)));
}
inline T argsort(C c, R r) {
    return ggml_argsort(c, packed(c, r, GGML_TYPE_F32), r.of({GGML_SORT_ORDER_ASC, GGML_SORT_ORDER_DESC}));
}
inline T argsort_long(C c, R r) {
    return ggml_argsort(c, f32(c, r.in(17, 300), r.in(1, 3)), GGML_SORT_ORDER_DESC);
}
inline T top_k(C c, R r) {
    T a = f32(c, r.in(1, 200), r.in(1, 5));
    return ggml_top_k(c, a, static_cast<int>(r.in(1, a->ne[0])));
}
inline T pool(C c, R r) {
    const int k = static_cast<int>(r.in(1, 8));
    T a = ggml_new_tensor_3d(c, r.of({GGML_TYPE_F32, GGML_TYPE_F16}), k * r.in(1, 6), r.in(1, 6), r.in(1, 3));
    return ggml_pool_2d(c, a, r.of({GGML_OP_POOL_MAX, GGML_OP_POOL_AVG}), k, 1, k, 1, 0, 0);
}

}  // namespace droid::test::nodes
