#pragma once

#include "op_node_tensors.h"

// Nodes that move elements, or only look at them in another way.
namespace droid::test::nodes {

inline T cont(C c, R r) {
    switch (r.in(0, 3)) {
        case 0: return ggml_cont(c, ggml_permute(c, any(c, r, float_type(r)), 0, 2, 1, 3));
        case 1: return ggml_cont(c, ggml_transpose(c, any(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_I32, GGML_TYPE_F16}))));
        case 2: {
            T a = any(c, r, GGML_TYPE_F32);
            return ggml_cont_2d(c, a, a->ne[0] * a->ne[1], a->ne[2] * a->ne[3]);
        }
        default: {
            const ggml_type type = cache_type(r);
            return ggml_cont(c, tensor(c, r, type, row_of(r, type, 64), r.in(1, 5), r.in(1, 3), 1));
        }
    }
}

inline T cast(C c, R r) {
    switch (r.in(0, 4)) {
        case 0: return ggml_cast(c, any(c, r, float_type(r)), float_type(r));
        case 1: return ggml_cast(c, any(c, r, GGML_TYPE_F32), GGML_TYPE_I32);
        case 2: return ggml_cast(c, any(c, r, GGML_TYPE_I32), GGML_TYPE_F32);
        case 3: {
            const ggml_type type = cache_type(r);
            const int64_t n = row_of(r, type, 128);
            return ggml_cast(c, tensor(c, r, float_type(r), n, r.in(1, 5), r.in(1, 3), 1), type);
        }
        default: {
            const ggml_type type = weight_type(r);
            return ggml_cast(c, tensor(c, r, type, row_of(r, type, 512), r.in(1, 5), r.in(1, 3), 1), GGML_TYPE_F32);
        }
    }
}

inline T cpy(C c, R r) {  // into a view of a cache
    T a = any(c, r, float_type(r));
    T cache = ggml_new_tensor_1d(c, float_type(r), ggml_nelements(a) + r.in(0, 50));
    const int64_t offset = r.in(0, cache->ne[0] - ggml_nelements(a));
    if (r.chance(50)) return ggml_cpy(c, a, ggml_view_1d(c, cache, ggml_nelements(a), offset * cache->nb[0]));
    T target = tensor(c, r, float_type(r), a->ne[0], a->ne[1], a->ne[2], a->ne[3]);
    return ggml_cpy(c, a, target);
}

inline T set(C c, R r) {
    T a = f32(c, r.in(4, 20), r.in(1, 5), r.in(1, 3));
    if (r.chance(50)) return ggml_set_1d(c, a, f32(c, r.in(1, 4)), 4 * r.in(0, ggml_nelements(a) - 4));
    const int64_t i = r.in(0, a->ne[2] - 1);
    return ggml_set_inplace(c, a, f32(c, a->ne[0], a->ne[1]), a->nb[1], a->nb[2], a->nb[3], i * a->nb[2]);
}

inline T repeat(C c, R r) {
    T a = any(c, r, r.of({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32, GGML_TYPE_BF16}));
    return ggml_repeat_4d(c, a, a->ne[0] * r.in(1, 3), a->ne[1] * r.in(1, 3), a->ne[2] * r.in(1, 3), a->ne[3]);
}

inline T concat(C c, R r) {
    const int dim = static_cast<int>(r.in(0, 3));
    const ggml_type type =
        r.of({GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_I32, GGML_TYPE_BF16, GGML_TYPE_Q8_0});
    int64_t ne[4] = {row_of(r, type, 40), r.in(1, 5), r.in(1, 4), r.in(1, 3)};
    T a = tensor(c, r, type, ne[0], ne[1], ne[2], ne[3]);
    ne[dim] = dim == 0 ? row_of(r, type, 40) : r.in(1, 4);
    T b = tensor(c, r, type, ne[0], ne[1], ne[2], ne[3]);
    if (type == GGML_TYPE_F32 && dim == 0 && r.chance(30)) {
        b = ggml_permute(c, ggml_new_tensor_4d(c, type, ne[1], ne[0], ne[2], ne[3]), 1, 0, 2, 3);
    }
    return ggml_concat(c, a, b, dim);
}

inline T pad(C c, R r) {
    const auto n = [&] { return static_cast<int>(r.in(0, 3)); };
    T a = any(c, r, GGML_TYPE_F32);
    if (r.chance(50)) return ggml_pad(c, a, n(), n(), n(), n());
    return ggml_pad_ext(c, a, n(), n(), n(), n(), n(), n(), n(), n());
}

inline T get_rows(C c, R r) {
    const ggml_type type = r.chance(20) ? GGML_TYPE_I32 : weight_type(r);
    T table = ggml_new_tensor_4d(c, type, row_of(r, type, 64), r.in(1, 9), r.in(1, 3), r.in(1, 3));
    return ggml_get_rows(c, table, i32(c, r.in(1, 9), table->ne[2], table->ne[3]));
}

inline T set_rows(C c, R r) {
    const ggml_type type = cache_type(r);
    const int64_t n = row_of(r, type, 64), n2 = r.in(1, 2), n3 = r.in(1, 2), rows = r.in(1, 6);
    T cache = ggml_new_tensor_4d(c, type, n, r.in(1, 12), n2, n3);
    const ggml_type source = type == GGML_TYPE_F16 && r.chance(50) ? GGML_TYPE_F16 : GGML_TYPE_F32;
    T ids =
        ggml_new_tensor_3d(c, r.of({GGML_TYPE_I32, GGML_TYPE_I64}), rows, r.chance(50) ? n2 : 1, r.chance(50) ? n3 : 1);
    return ggml_set_rows(c, cache, ggml_new_tensor_4d(c, source, n, rows, n2, n3), ids);
}

inline T conv(C c, R r) {
    T kernel = ggml_new_tensor_3d(c, GGML_TYPE_F16, r.in(1, 7), r.in(1, 4), r.in(1, 4));
    T x = f32(c, r.in(8, 20), kernel->ne[1], r.in(1, 2));
    return ggml_im2col(c, kernel, x, 1, 0, static_cast<int>(kernel->ne[0] / 2), 0, 1, 0, false,
                       r.of({GGML_TYPE_F16, GGML_TYPE_F32}));
}

inline T none(C c, R r) {
    return any(c, r, float_type(r));
}
inline T reshape(C c, R r) {
    T a = packed(c, r, float_type(r));
    return ggml_reshape_2d(c, a, a->ne[0] * a->ne[1], a->ne[2] * a->ne[3]);
}
inline T view(C c, R r) {
    T a = packed(c, r, float_type(r));
    return ggml_view_2d(c, a, a->ne[0], a->ne[1], a->nb[1], 0);
}
inline T permute(C c, R r) {
    return ggml_permute(c, any(c, r, float_type(r)), 0, 2, 1, 3);
}

}  // namespace droid::test::nodes
