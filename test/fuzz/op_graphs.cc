#include "op_graphs.h"

#include <stdexcept>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"

namespace droid::fuzz {

namespace {

using Context = ggml_context *;

ggml_tensor * f32(Context c, int64_t a, int64_t b = 1, int64_t d = 1, int64_t e = 1) {
    return ggml_new_tensor_4d(c, GGML_TYPE_F32, a, b, d, e);
}

ggml_tensor * f16(Context c, int64_t a, int64_t b = 1, int64_t d = 1, int64_t e = 1) {
    return ggml_new_tensor_4d(c, GGML_TYPE_F16, a, b, d, e);
}

ggml_tensor * of_type(Context c, ggml_type type, int64_t a, int64_t b, int64_t d = 1) {
    return ggml_new_tensor_3d(c, type, a, b, d);
}

ggml_tensor * ids(Context c, int64_t a, int64_t b = 1, int64_t d = 1) {
    return ggml_new_tensor_3d(c, GGML_TYPE_I32, a, b, d);
}

ggml_tensor * rope(Context c, int mode) {
    return ggml_rope_ext(c, f32(c, 8, 2, 3), ids(c, 3), f32(c, 4), 8, mode, 512, 1e4f, 1, 1, 1, 32, 1);
}

ggml_tensor * rope_multi(Context c) {
    int sections[GGML_MROPE_SECTIONS] = {1, 1, 1, 1};
    return ggml_rope_multi(c, f32(c, 8, 2, 3), ids(c, 12), nullptr, 8, sections, GGML_ROPE_TYPE_MROPE, 512, 1e4f, 1, 0,
                           1, 32, 1);
}

ggml_tensor * attention(Context c, ggml_type type, bool sinks) {
    ggml_tensor * k = of_type(c, type, 32, 4, 2);
    ggml_tensor * v = of_type(c, type, 32, 4, 2);
    ggml_tensor * out = ggml_flash_attn_ext(c, f32(c, 32, 3, 4), k, v, f16(c, 4, 64), 0.2f, 0, 0);
    if (sinks) ggml_flash_attn_ext_add_sinks(out, f32(c, 4));
    return out;
}

}  // namespace

const std::vector<OpGraph> & op_graphs() {
    static const std::vector<OpGraph> graphs = {
        [](Context c) { return ggml_dup(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_add(c, f32(c, 4, 3), f32(c, 4)); },
        [](Context c) { return ggml_sub(c, f16(c, 4, 3), f32(c, 1, 3)); },
        [](Context c) { return ggml_mul(c, f16(c, 4, 3, 2), f16(c, 4, 1, 2)); },
        [](Context c) { return ggml_div_inplace(c, f32(c, 4, 3), f32(c, 4, 3)); },
        [](Context c) { return ggml_add(c, of_type(c, GGML_TYPE_Q8_0, 32, 2), f32(c, 32, 2)); },
        [](Context c) { return ggml_add_id(c, f32(c, 4, 2, 3), f32(c, 4, 5), ids(c, 2, 3)); },
        [](Context c) { return ggml_acc(c, f32(c, 4, 4), f32(c, 2, 2), 16, 64, 64, 4); },
        [](Context c) { return ggml_set_2d(c, f32(c, 4, 4), f32(c, 2, 2), 16, 4); },
        [](Context c) { return ggml_sqr(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_sqrt(c, f16(c, 4, 3)); },
        [](Context c) { return ggml_log(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_sin(c, ggml_cos(c, f32(c, 4, 3))); },
        [](Context c) { return ggml_sum(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_sum_rows(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_mean(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_cumsum(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_argmax(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_repeat(c, f32(c, 2, 1), f32(c, 4, 3)); },
        [](Context c) { return ggml_concat(c, f32(c, 4, 3), f32(c, 4, 2), 1); },
        [](Context c) { return ggml_norm(c, f32(c, 4, 3), 1e-5f); },
        [](Context c) { return ggml_rms_norm(c, f32(c, 4, 3), 1e-5f); },
        [](Context c) { return ggml_mul(c, ggml_rms_norm(c, f32(c, 4, 3), 1e-5f), f32(c, 4)); },
        [](Context c) { return ggml_l2_norm(c, f32(c, 4, 3), 1e-5f); },
        [](Context c) { return ggml_group_norm(c, f32(c, 4, 3, 4), 2, 1e-5f); },
        [](Context c) { return ggml_mul_mat(c, f32(c, 8, 4), f32(c, 8, 3)); },
        [](Context c) { return ggml_mul_mat(c, f16(c, 8, 4, 1, 2), f32(c, 8, 3, 2, 2)); },
        [](Context c) { return ggml_mul_mat(c, of_type(c, GGML_TYPE_Q4_0, 64, 16), f32(c, 64, 5)); },
        [](Context c) { return ggml_mul_mat(c, of_type(c, GGML_TYPE_Q4_K, 256, 8), f32(c, 256, 2)); },
        [](Context c) { return ggml_mul_mat(c, of_type(c, GGML_TYPE_Q8_0, 32, 8), f32(c, 32, 9)); },
        [](Context c) { return ggml_mul_mat(c, of_type(c, GGML_TYPE_BF16, 32, 8), f32(c, 32, 2)); },
        [](Context c) { return ggml_mul_mat(c, of_type(c, GGML_TYPE_IQ4_NL, 32, 8), f32(c, 32, 5)); },
        [](Context c) { return ggml_mul_mat_id(c, f32(c, 8, 4, 3), f32(c, 8, 1, 2), ids(c, 2, 2)); },
        [](Context c) {
            return ggml_mul_mat_id(c, of_type(c, GGML_TYPE_Q4_0, 32, 8, 3), f32(c, 32, 1, 2), ids(c, 2, 2));
        },
        [](Context c) { return ggml_out_prod(c, f32(c, 4, 3), f32(c, 5, 3)); },
        [](Context c) { return ggml_scale_bias(c, f32(c, 4, 3), 2, 1); },
        [](Context c) { return ggml_cpy(c, f32(c, 4, 3), f16(c, 3, 4)); },
        [](Context c) { return ggml_cpy(c, f32(c, 32, 3), of_type(c, GGML_TYPE_Q8_0, 32, 3)); },
        [](Context c) { return ggml_cont(c, ggml_permute(c, f32(c, 4, 3, 2), 1, 2, 0, 3)); },
        [](Context c) { return ggml_get_rows(c, of_type(c, GGML_TYPE_Q4_0, 32, 5), ids(c, 3)); },
        [](Context c) { return ggml_set_rows(c, f16(c, 4, 5), f32(c, 4, 3), ids(c, 3)); },
        [](Context c) { return ggml_set_rows(c, f32(c, 4, 5), f32(c, 4, 3), ggml_new_tensor_1d(c, GGML_TYPE_I64, 3)); },
        [](Context c) { return ggml_diag(c, f32(c, 4, 1, 2)); },
        [](Context c) { return ggml_diag_mask_inf(c, f32(c, 4, 3), 1); },
        [](Context c) { return ggml_soft_max(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_soft_max_ext(c, f32(c, 4, 3, 2), f16(c, 4, 3), 0.5f, 8); },
        [](Context c) { return rope(c, 0); },
        [](Context c) { return rope(c, GGML_ROPE_TYPE_NEOX); },
        rope_multi,
        [](Context c) { return ggml_clamp(c, f32(c, 4, 3), 0, 1); },
        [](Context c) {
            return ggml_im2col(c, f16(c, 3, 3, 2, 2), f32(c, 6, 5, 2), 1, 1, 1, 1, 1, 1, true, GGML_TYPE_F16);
        },
        [](Context c) { return ggml_conv_1d(c, f16(c, 3, 2, 4), f32(c, 8, 2), 1, 1, 1); },
        [](Context c) { return ggml_conv_2d_direct(c, f16(c, 3, 3, 2, 2), f32(c, 6, 5, 2), 1, 1, 1, 1, 1, 1); },
        [](Context c) { return ggml_conv_2d_dw_direct(c, f32(c, 3, 3, 1, 2), f32(c, 6, 5, 2), 1, 1, 1, 1, 1, 1); },
        [](Context c) { return ggml_conv_transpose_1d(c, f16(c, 3, 2, 4), f32(c, 5, 4), 2, 0, 1); },
        [](Context c) { return ggml_conv_transpose_2d_p0(c, f16(c, 3, 3, 2, 4), f32(c, 5, 5, 4), 2); },
        [](Context c) { return ggml_pool_1d(c, f32(c, 8, 3), GGML_OP_POOL_MAX, 2, 2, 0); },
        [](Context c) { return ggml_pool_2d(c, f32(c, 8, 6, 2), GGML_OP_POOL_AVG, 2, 2, 2, 2, 0, 0); },
        [](Context c) { return ggml_upscale(c, f32(c, 4, 3, 2), 2, GGML_SCALE_MODE_NEAREST); },
        [](Context c) { return ggml_interpolate(c, f32(c, 4, 3, 2), 7, 5, 2, 1, GGML_SCALE_MODE_BILINEAR); },
        [](Context c) { return ggml_pad_ext(c, f32(c, 4, 3), 1, 2, 0, 1, 0, 0, 0, 0); },
        [](Context c) { return ggml_pad_reflect_1d(c, f32(c, 4, 3), 1, 2); },
        [](Context c) { return ggml_roll(c, f32(c, 4, 3), 1, -1, 0, 0); },
        [](Context c) { return ggml_arange(c, 0, 6, 1); },
        [](Context c) { return ggml_timestep_embedding(c, f32(c, 3), 8, 100); },
        [](Context c) { return ggml_argsort(c, f32(c, 6, 3), GGML_SORT_ORDER_DESC); },
        [](Context c) { return ggml_top_k(c, f32(c, 6, 3), 2); },
        [](Context c) { return ggml_leaky_relu(c, f32(c, 4, 3), 0.1f, false); },
        [](Context c) { return ggml_tri(c, f32(c, 4, 4), GGML_TRI_TYPE_LOWER); },
        [](Context c) { return ggml_fill(c, f32(c, 4, 3), 2); },
        [](Context c) { return attention(c, GGML_TYPE_F16, false); },
        [](Context c) { return attention(c, GGML_TYPE_Q8_0, true); },
        [](Context c) { return ggml_ssm_conv(c, f32(c, 6, 4, 1), f32(c, 4, 4)); },
        [](Context c) {
            return ggml_ssm_scan(c, f32(c, 4, 2, 2, 1), f32(c, 2, 2, 3, 1), f32(c, 2, 3, 1), f32(c, 1, 2),
                                 f32(c, 4, 1, 3, 1), f32(c, 4, 1, 3, 1), ids(c, 1), 1);
        },
        [](Context c) { return ggml_win_part(c, f32(c, 4, 6, 6), 4); },
        [](Context c) { return ggml_get_rel_pos(c, f16(c, 4, 5), 3, 3); },
        [](Context c) { return ggml_gelu(c, f32(c, 4, 3)); },
        [](Context c) { return ggml_tanh(c, f16(c, 4, 3)); },
        [](Context c) { return ggml_swiglu_split(c, f32(c, 4, 3), f32(c, 4, 3)); },
        [](Context c) { return ggml_geglu(c, f32(c, 8, 3)); },
        [](Context c) {
            return ggml_rwkv_wkv6(c, f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2), f32(c, 4, 2, 3),
                                  f32(c, 32, 1));
        },
        [](Context c) {
            return ggml_rwkv_wkv7(c, f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2, 3),
                                  f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 32, 1));
        },
        [](Context c) {
            return ggml_gated_linear_attn(c, f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2, 3), f32(c, 4, 2, 3),
                                          f32(c, 32, 1), 1);
        },
        [](Context c) { return ggml_solve_tri(c, f32(c, 4, 4), f32(c, 3, 4), true, true, false); },
    };
    return graphs;
}

bool compute_op_graph(droid::rpc::Worker & worker, OpGraph make) {
    const ggml_backend_dev_t device = worker.device();
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    const ggml_context_ptr context(ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true}));
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_tensor * result = make(context.get());
    ggml_build_forward_expand(graph, result);
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
        if (!ggml_backend_dev_supports_op(device, ggml_graph_node(graph, i))) return false;
    }
    for (ggml_tensor * t = ggml_get_first_tensor(context.get()); t; t = ggml_get_next_tensor(context.get(), t)) {
        if (t->op == GGML_OP_NONE) ggml_set_input(t);
    }
    const ggml_gallocr_ptr allocator(ggml_gallocr_new(ggml_backend_dev_buffer_type(device)));
    if (!backend || !ggml_gallocr_alloc_graph(allocator.get(), graph)) throw std::logic_error("no memory");
    for (ggml_tensor * t = ggml_get_first_tensor(context.get()); t; t = ggml_get_next_tensor(context.get(), t)) {
        if (t->op != GGML_OP_NONE || t->view_src || !t->buffer) continue;
        std::vector<uint8_t> data(ggml_nbytes(t));
        // Indices that differ and are small; any bytes are a number of the other types.
        if (t->type == GGML_TYPE_I32) {
            for (size_t i = 0; i < data.size(); i += 4) data[i] = uint8_t(i / 4 % 2);
        }
        if (t->type == GGML_TYPE_I64) {
            for (size_t i = 0; i < data.size(); i += 8) data[i] = uint8_t(i / 8 % 3);
        }
        ggml_backend_tensor_set(t, data.data(), 0, data.size());
    }
    if (ggml_backend_graph_compute(backend.get(), graph) != GGML_STATUS_SUCCESS) return false;
    std::vector<uint8_t> read(ggml_nbytes(result));
    ggml_backend_tensor_get(result, read.data(), 0, read.size());
    return true;
}

}  // namespace droid::fuzz
