#pragma once

#include <vector>

#include "op_nodes_elementwise.h"
#include "op_nodes_layers.h"
#include "op_nodes_shape.h"

// Nodes of every op that a worker computes, in the variants llama.cpp builds, made by ggml's own constructors: what the
// checks of ops must accept, and what their random test starts from.
namespace droid::test {

struct NodeKind {
    const char * name;
    ggml_tensor * (*build)(ggml_context * context, Random & random);
};

inline const std::vector<NodeKind> & node_kinds() {
    using namespace nodes;
    static const std::vector<NodeKind> kinds = {
        {"none", none},
        {"reshape", reshape},
        {"view", view},
        {"permute", permute},
        {"transpose", map<ggml_transpose>},
        {"add", binary<ggml_add>},
        {"add_inplace", binary<ggml_add_inplace>},
        {"sub", binary<ggml_sub>},
        {"mul", binary<ggml_mul>},
        {"div", binary<ggml_div>},
        {"add_id", add_id},
        {"sqr", map<ggml_sqr>},
        {"sqrt", map<ggml_sqrt>},
        {"log", map<ggml_log>},
        {"unary", unary},
        {"glu", glu},
        {"scale", scale},
        {"clamp", clamp},
        {"fill", fill},
        {"tri", tri},
        {"arange", arange},
        {"norm", norm},
        {"rms_norm", rms_norm},
        {"norm_weighted", norm_weighted},
        {"l2_norm", l2_norm},
        {"group_norm", group_norm},
        {"sum", map_f32<ggml_sum>},
        {"sum_rows", map_f32<ggml_sum_rows>},
        {"mean", map_f32<ggml_mean>},
        {"cumsum", map_f32<ggml_cumsum>},
        {"argmax", argmax},
        {"argsort", argsort},
        {"argsort_long", argsort_long},
        {"top_k", top_k},
        {"pool", pool},
        {"cont", cont},
        {"cast", cast},
        {"cpy", cpy},
        {"set", set},
        {"repeat", repeat},
        {"concat", concat},
        {"pad", pad},
        {"get_rows", get_rows},
        {"set_rows", set_rows},
        {"conv", conv},
        {"mul_mat", mul_mat},
        {"hadamard", hadamard},
        {"mul_mat_id", mul_mat_id},
        {"mul_mat_repacked", mul_mat_repacked},
        {"mul_mat_id_repacked", mul_mat_id_repacked},
        {"solve_tri", solve_tri},
        {"soft_max", soft_max},
        {"rope", rope},
        {"rope_multi", rope_multi},
        {"flash_attn", flash_attn},
        {"flash_attn_decode", flash_attn_decode},
        {"flash_attn_prompt", flash_attn_prompt},
        {"lightning_indexer", lightning_indexer},
        {"ssm_conv", ssm_conv},
        {"ssm_scan", ssm_scan},
        {"wkv", wkv},
        {"gated_delta_net", gated_delta_net},
        {"hc_comb", hc_comb},
        {"hc_pre", hc_pre},
        {"hc_post", hc_post},
    };
    return kinds;
}

}  // namespace droid::test
