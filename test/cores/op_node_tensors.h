#pragma once

#include <cstdint>
#include <initializer_list>

#include "ggml.h"

// What the nodes of op_nodes.h are made of: tensors of random types and shapes.
namespace droid::test {

struct Random {
    uint64_t state;
    uint64_t next() {
        uint64_t z = (state += 0x9e3779b97f4a7c15ull);
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
        return z ^ (z >> 31);
    }
    int64_t in(int64_t low, int64_t high) { return low + static_cast<int64_t>(next() % (high - low + 1)); }
    bool chance(int percent) { return in(1, 100) <= percent; }
    template <typename T>
    T of(std::initializer_list<T> list) {
        return list.begin()[next() % list.size()];
    }
};

namespace nodes {

using C = ggml_context *;
using R = Random &;
using T = ggml_tensor *;

inline T f32(C c, int64_t a, int64_t b = 1, int64_t d = 1, int64_t e = 1) {
    return ggml_new_tensor_4d(c, GGML_TYPE_F32, a, b, d, e);
}
inline T i32(C c, int64_t a, int64_t b = 1, int64_t d = 1) {
    return ggml_new_tensor_3d(c, GGML_TYPE_I32, a, b, d);
}

inline ggml_type float_type(R r) {
    return r.of({GGML_TYPE_F32, GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16});
}

inline ggml_type cache_type(R r) {
    return r.of({GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1,
                 GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_IQ4_NL});
}

inline ggml_type weight_type(R r) {
    return r.of({GGML_TYPE_F32,     GGML_TYPE_F16,    GGML_TYPE_BF16,  GGML_TYPE_Q4_0,  GGML_TYPE_Q4_1,
                 GGML_TYPE_Q5_0,    GGML_TYPE_Q5_1,   GGML_TYPE_Q8_0,  GGML_TYPE_Q2_K,  GGML_TYPE_Q3_K,
                 GGML_TYPE_Q4_K,    GGML_TYPE_Q5_K,   GGML_TYPE_Q6_K,  GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M,
                 GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_S, GGML_TYPE_IQ3_XXS,
                 GGML_TYPE_IQ4_NL,  GGML_TYPE_IQ4_XS, GGML_TYPE_TQ1_0, GGML_TYPE_TQ2_0, GGML_TYPE_MXFP4,
                 GGML_TYPE_NVFP4,   GGML_TYPE_Q1_0,   GGML_TYPE_Q2_0});
}

inline int64_t row_of(R r, ggml_type type, int64_t most) {
    const int64_t block = ggml_blck_size(type);
    return block * r.in(1, most / block > 1 ? most / block : 1);
}

// A tensor of this type, fresh or a view whose rows are apart.
inline T tensor(C c, R r, ggml_type type, int64_t a, int64_t b, int64_t d, int64_t e) {
    if (r.chance(70)) return ggml_new_tensor_4d(c, type, a, b, d, e);
    T whole = ggml_new_tensor_4d(c, type, a + r.in(0, 2) * ggml_blck_size(type), b + r.in(0, 2), d, e);
    return ggml_view_4d(c, whole, a, b, d, e, whole->nb[1], whole->nb[2], whole->nb[3], 0);
}

inline T any(C c, R r, ggml_type type) {
    return tensor(c, r, type, r.in(1, 40), r.in(1, 6), r.in(1, 4), r.in(1, 3));
}

inline T packed(C c, R r, ggml_type type) {
    return ggml_new_tensor_4d(c, type, r.in(1, 40), r.in(1, 6), r.in(1, 4), r.in(1, 3));
}

}  // namespace nodes

}  // namespace droid::test
