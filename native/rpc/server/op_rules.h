#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "ggml-cpu.h"
#include "ggml.h"

// Internal to op_check*.cc: what the rules of the ops are written in. A rule gives the reason for refusing a node as a
// string literal, null when there is none.
namespace droid::rpc::rules {

using Rule = const char * (*)(const ggml_tensor & node);

// Kernels count rows in an int, and round them up to a multiple of the threads.
constexpr int64_t max_rows = 1 << 30;
// ... and elements too where they copy.
constexpr int64_t max_copied_elements = INT32_MAX;

inline const ggml_tensor & src(const ggml_tensor & node, int i) {
    return *node.src[i];
}

inline float param_f32(const ggml_tensor & node, int i) {
    float value;
    std::memcpy(&value, reinterpret_cast<const char *>(node.op_params) + i * sizeof(value), sizeof(value));
    return value;
}

inline int64_t param_i32(const ggml_tensor & node, int i) {
    int32_t value;
    std::memcpy(&value, reinterpret_cast<const char *>(node.op_params) + i * sizeof(value), sizeof(value));
    return value;
}

inline bool is_f32(const ggml_tensor & t) {
    return t.type == GGML_TYPE_F32;
}

inline bool is_float(ggml_type type) {
    return type == GGML_TYPE_F32 || type == GGML_TYPE_F16 || type == GGML_TYPE_BF16;
}

// Types that kernels can read as numbers: floats, and the quantized types of weights. Not Q8_1 and Q8_K, which only
// hold intermediate results and lack what kernels call without asking.
inline bool is_weight(ggml_type type) {
    return is_float(type) ||
           (ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float && ggml_get_type_traits_cpu(type)->vec_dot);
}

// The quantized types of a KV cache, the only ones that graphs quantize to.
inline bool is_cache_type(ggml_type type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_IQ4_NL: return true;
        default: return false;
    }
}

inline bool has_shape(const ggml_tensor & t, int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3) {
    return t.ne[0] == ne0 && t.ne[1] == ne1 && t.ne[2] == ne2 && t.ne[3] == ne3;
}

inline bool same_shape(const ggml_tensor & a, const ggml_tensor & b) {
    return has_shape(a, b.ne[0], b.ne[1], b.ne[2], b.ne[3]);
}

inline bool same_strides(const ggml_tensor & a, const ggml_tensor & b) {
    return a.nb[0] == b.nb[0] && a.nb[1] == b.nb[1] && a.nb[2] == b.nb[2] && a.nb[3] == b.nb[3];
}

// Whether t fills the shape of `whole` by repetition.
inline bool repeats_to(const ggml_tensor & t, const ggml_tensor & whole) {
    return whole.ne[0] % t.ne[0] == 0 && whole.ne[1] % t.ne[1] == 0 && whole.ne[2] % t.ne[2] == 0 &&
           whole.ne[3] % t.ne[3] == 0;
}

// The elements of a row follow each other. Unlike ggml_is_contiguous_rows() also for rows of one element, because most
// kernels assert it for these too.
inline bool packed_row(const ggml_tensor & t) {
    return t.nb[0] == ggml_type_size(t.type);
}

// Row i of all is at i * nb[1]. ggml_is_contiguous() does not say so: it ignores the strides of dimensions of size one,
// kernels that flatten the rows use them.
inline bool flat_rows(const ggml_tensor & t) {
    const uint64_t stride = t.nb[1];
    return (t.ne[2] == 1 || t.nb[2] == stride * static_cast<uint64_t>(t.ne[1])) &&
           (t.ne[3] == 1 || t.nb[3] == stride * static_cast<uint64_t>(t.ne[1] * t.ne[2]));
}

// Every stride is what a new tensor would have, those of dimensions of size one included.
inline bool packed(const ggml_tensor & t) {
    return packed_row(t) && t.nb[1] == ggml_row_size(t.type, t.ne[0]) &&
           t.nb[2] == t.nb[1] * static_cast<uint64_t>(t.ne[1]) && t.nb[3] == t.nb[2] * static_cast<uint64_t>(t.ne[2]);
}

inline bool growing_strides(const ggml_tensor & t) {
    return t.nb[0] <= t.nb[1] && t.nb[1] <= t.nb[2] && t.nb[2] <= t.nb[3];
}

// From the first byte of the tensor to behind its last.
inline uint64_t extent(const ggml_tensor & t) {
    uint64_t bytes = ggml_row_size(t.type, t.ne[0]);
    if (!ggml_is_quantized(t.type)) bytes = ggml_type_size(t.type) + static_cast<uint64_t>(t.ne[0] - 1) * t.nb[0];
    for (int i = 1; i < GGML_MAX_DIMS; i++) bytes += static_cast<uint64_t>(t.ne[i] - 1) * t.nb[i];
    return bytes;
}

// The bytes of all elements, were they packed.
inline uint64_t packed_bytes(const ggml_tensor & t) {
    return static_cast<uint64_t>(ggml_nelements(&t)) / ggml_blck_size(t.type) * ggml_type_size(t.type);
}

inline bool overlap(const ggml_tensor & a, const ggml_tensor & b) {
    const uint64_t first = reinterpret_cast<uintptr_t>(a.data);
    const uint64_t second = reinterpret_cast<uintptr_t>(b.data);
    return first < second + extent(b) && second < first + extent(a);
}

// op_check_elementwise.cc
const char * check_binary(const ggml_tensor & node);
const char * check_add_id(const ggml_tensor & node);
const char * check_unary(const ggml_tensor & node);
const char * check_math(const ggml_tensor & node);  // SQR, SQRT, LOG
const char * check_glu(const ggml_tensor & node);
const char * check_scale(const ggml_tensor & node);
const char * check_clamp(const ggml_tensor & node);
const char * check_fill(const ggml_tensor & node);
const char * check_tri(const ggml_tensor & node);
const char * check_arange(const ggml_tensor & node);

// op_check_reduce.cc
const char * check_norm(const ggml_tensor & node);  // NORM, RMS_NORM, L2_NORM
const char * check_group_norm(const ggml_tensor & node);
const char * check_sum(const ggml_tensor & node);
const char * check_sum_rows(const ggml_tensor & node);  // SUM_ROWS, MEAN
const char * check_cumsum(const ggml_tensor & node);
const char * check_argmax(const ggml_tensor & node);
const char * check_argsort(const ggml_tensor & node);
const char * check_top_k(const ggml_tensor & node);
const char * check_pool_2d(const ggml_tensor & node);

// op_check_shape.cc
const char * check_copy(const ggml_tensor & node);  // CPY, CONT
const char * check_set(const ggml_tensor & node);
const char * check_repeat(const ggml_tensor & node);
const char * check_concat(const ggml_tensor & node);
const char * check_pad(const ggml_tensor & node);
const char * check_get_rows(const ggml_tensor & node);
const char * check_set_rows(const ggml_tensor & node);
const char * check_im2col(const ggml_tensor & node);

// op_check_matmul.cc
const char * check_mul_mat(const ggml_tensor & node);
const char * check_mul_mat_id(const ggml_tensor & node);
const char * check_solve_tri(const ggml_tensor & node);

// op_check_attention.cc
const char * check_soft_max(const ggml_tensor & node);
const char * check_rope(const ggml_tensor & node);  // ROPE, ROPE_BACK
const char * check_flash_attn_ext(const ggml_tensor & node);
const char * check_lightning_indexer(const ggml_tensor & node);

// op_check_recurrent.cc
const char * check_ssm_conv(const ggml_tensor & node);
const char * check_ssm_scan(const ggml_tensor & node);
const char * check_wkv(const ggml_tensor & node);  // RWKV_WKV6, RWKV_WKV7, GATED_LINEAR_ATTN
const char * check_gated_delta_net(const ggml_tensor & node);
const char * check_hc_comb(const ggml_tensor & node);  // hyper-connections of DeepSeek V4
const char * check_hc_pre(const ggml_tensor & node);
const char * check_hc_post(const ggml_tensor & node);

}  // namespace droid::rpc::rules
