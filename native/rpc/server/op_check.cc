#include "rpc/server/op_check.h"

#include <cmath>
#include <utility>

#include "rpc/server/op_rules.h"

namespace droid::rpc {

namespace {

using namespace rules;

struct OpRule {
    int required;  // sources that must be there
    int sources;   // sources that may be there
    Rule check;    // null: the node computes nothing
};

// The ops that llama.cpp builds for inference, and no others.
const OpRule * find_rule(ggml_op op) {
    switch (op) {
#define RULE(name, required, sources, check)                \
    case GGML_OP_##name: {                                  \
        static const OpRule rule{required, sources, check}; \
        return &rule;                                       \
    }
        RULE(NONE, 0, GGML_MAX_SRC, nullptr)
        RULE(RESHAPE, 0, GGML_MAX_SRC, nullptr)
        RULE(VIEW, 0, GGML_MAX_SRC, nullptr)
        RULE(PERMUTE, 0, GGML_MAX_SRC, nullptr)
        RULE(TRANSPOSE, 0, GGML_MAX_SRC, nullptr)

        RULE(ADD, 2, 2, check_binary)
        RULE(SUB, 2, 2, check_binary)
        RULE(MUL, 2, 2, check_binary)
        RULE(DIV, 2, 2, check_binary)
        RULE(ADD_ID, 3, 3, check_add_id)
        RULE(SQR, 1, 1, check_math)
        RULE(SQRT, 1, 1, check_math)
        RULE(LOG, 1, 1, check_math)
        RULE(UNARY, 1, 1, check_unary)
        RULE(GLU, 1, 2, check_glu)
        RULE(SCALE, 1, 1, check_scale)
        RULE(CLAMP, 1, 1, check_clamp)
        RULE(FILL, 1, 1, check_fill)
        RULE(TRI, 1, 1, check_tri)
        RULE(ARANGE, 0, 0, check_arange)

        RULE(NORM, 1, 1, check_norm)
        RULE(RMS_NORM, 1, 1, check_norm)
        RULE(L2_NORM, 1, 1, check_norm)
        RULE(GROUP_NORM, 1, 1, check_group_norm)
        RULE(SUM, 1, 1, check_sum)
        RULE(SUM_ROWS, 1, 1, check_sum_rows)
        RULE(MEAN, 1, 1, check_sum_rows)
        RULE(CUMSUM, 1, 1, check_cumsum)
        RULE(ARGMAX, 1, 1, check_argmax)
        RULE(ARGSORT, 1, 1, check_argsort)
        RULE(TOP_K, 1, 1, check_top_k)
        RULE(POOL_2D, 1, 1, check_pool_2d)

        RULE(CPY, 1, 2, check_copy)
        RULE(CONT, 1, 1, check_copy)
        RULE(SET, 2, 2, check_set)
        RULE(REPEAT, 1, 2, check_repeat)
        RULE(CONCAT, 2, 2, check_concat)
        RULE(PAD, 1, 1, check_pad)
        RULE(GET_ROWS, 2, 2, check_get_rows)
        RULE(SET_ROWS, 2, 3, check_set_rows)
        RULE(IM2COL, 2, 2, check_im2col)

        RULE(MUL_MAT, 2, 2, check_mul_mat)
        RULE(MUL_MAT_ID, 3, 3, check_mul_mat_id)
        RULE(SOLVE_TRI, 2, 2, check_solve_tri)

        RULE(SOFT_MAX, 1, 3, check_soft_max)
        RULE(ROPE, 2, 3, check_rope)
        RULE(ROPE_BACK, 2, 3, check_rope)
        RULE(FLASH_ATTN_EXT, 3, 5, check_flash_attn_ext)
        RULE(LIGHTNING_INDEXER, 4, 4, check_lightning_indexer)

        RULE(SSM_CONV, 2, 2, check_ssm_conv)
        RULE(SSM_SCAN, 7, 7, check_ssm_scan)
        RULE(RWKV_WKV6, 6, 6, check_wkv)
        RULE(RWKV_WKV7, 7, 7, check_wkv)
        RULE(GATED_LINEAR_ATTN, 5, 5, check_wkv)
        RULE(GATED_DELTA_NET, 6, 6, check_gated_delta_net)
        RULE(DSV4_HC_COMB, 3, 3, check_hc_comb)
        RULE(DSV4_HC_PRE, 2, 2, check_hc_pre)
        RULE(DSV4_HC_POST, 3, 4, check_hc_post)
#undef RULE
        default: return nullptr;
    }
}

// What no kernel survives, whatever the op. The caller has seen to it that the elements lie inside of a buffer, but
// with strides of zero a few bytes hold any number of them: counters would overflow, loops not end, work buffers
// explode.
const char * check_tensor(const ggml_tensor & t) {
    int64_t rows = 1;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        if (t.ne[i] < 1 || t.ne[i] > INT32_MAX) return "impossible size";
        if (i > 0) rows *= t.ne[i];
        if (rows > max_rows) return "too many rows";
        // Kernels divide strides by the size of an element.
        if (t.ne[i] > 1 && t.nb[i] % ggml_type_size(t.type) != 0) return "strides are no multiple of the element";
    }
    // No view of an honest graph shows its memory more than a few times over.
    if (packed_bytes(t) / 16 > extent(t)) return "elements overlap";
    return nullptr;
}

// Whether the kernel calls memcpy, whose two ranges must not overlap unless they are the same.
bool copies_memory(ggml_op op) {
    switch (op) {
        case GGML_OP_CPY:
        case GGML_OP_CONT:
        case GGML_OP_SET:
        case GGML_OP_CONCAT:
        case GGML_OP_SET_ROWS:
        case GGML_OP_SCALE:
        case GGML_OP_RMS_NORM:
        case GGML_OP_L2_NORM: return true;
        default: return false;
    }
}

bool overlaps_partly(const ggml_tensor & a, const ggml_tensor & b) {
    const bool same = a.data == b.data && a.type == b.type && same_shape(a, b) && same_strides(a, b);
    return !same && overlap(a, b);
}

// Whether no two elements share memory: dimensions in the order of their strides must each step over the one before.
bool elements_disjoint(const ggml_tensor & t) {
    int64_t ne[GGML_MAX_DIMS] = {t.ne[0] / ggml_blck_size(t.type), t.ne[1], t.ne[2], t.ne[3]};
    uint64_t nb[GGML_MAX_DIMS] = {t.nb[0], t.nb[1], t.nb[2], t.nb[3]};
    for (int i = 1; i < GGML_MAX_DIMS; i++) {
        for (int j = i; j > 0 && nb[j] < nb[j - 1]; j--) {
            std::swap(nb[j], nb[j - 1]);
            std::swap(ne[j], ne[j - 1]);
        }
    }
    uint64_t covered = ggml_type_size(t.type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        if (ne[i] == 1) continue;
        if (nb[i] < covered) return false;
        covered = nb[i] * static_cast<uint64_t>(ne[i] - 1) + covered;
    }
    return true;
}

template <typename T>
std::string check_values(const IndexInput & input) {
    const ggml_tensor & t = *input.tensor;
    // By when each value was seen last, for the rows that must not repeat one.
    std::vector<int64_t> seen;
    if (input.distinct && input.last >= 0) seen.assign(static_cast<size_t>(input.last) + 1, -1);
    int64_t row = 0;
    for (int64_t i3 = 0; i3 < t.ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < t.ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t.ne[1]; i1++, row++) {
                const char * data = static_cast<const char *>(t.data) + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
                for (int64_t i0 = 0; i0 < t.ne[0]; i0++) {
                    T value;
                    std::memcpy(&value, data + i0 * t.nb[0], sizeof(value));
                    if (value < input.first || value > input.last) {
                        return "index " + std::to_string(value) + " is not in [" + std::to_string(input.first) + ", " +
                               std::to_string(input.last) + "]";
                    }
                    if (!input.distinct) continue;
                    if (seen[value] == row) return "index " + std::to_string(value) + " is given twice";
                    seen[value] = row;
                }
            }
        }
    }
    return {};
}

std::string check_no_nan(const ggml_tensor & t) {
    for (int64_t i3 = 0; i3 < t.ne[3]; i3++) {
        for (int64_t i2 = 0; i2 < t.ne[2]; i2++) {
            for (int64_t i1 = 0; i1 < t.ne[1]; i1++) {
                const char * data = static_cast<const char *>(t.data) + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
                for (int64_t i0 = 0; i0 < t.ne[0]; i0++) {
                    float value;
                    std::memcpy(&value, data + i0 * t.nb[0], sizeof(value));
                    if (std::isnan(value)) return "a value to sort is not a number";
                }
            }
        }
    }
    return {};
}

}  // namespace

bool op_allowed(ggml_op op) {
    return find_rule(op) != nullptr;
}

std::string check_node(const ggml_tensor & node) {
    const OpRule * rule = find_rule(node.op);
    if (!rule) return "op " + std::to_string(static_cast<int>(node.op)) + " is not allowed";
    if (!rule->check) return {};
    const auto refuse = [&](const std::string & reason) { return std::string(ggml_op_name(node.op)) + ": " + reason; };

    if (const char * reason = check_tensor(node)) return refuse(reason);
    if (!elements_disjoint(node)) return refuse("elements of the result overlap");
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (!node.src[i]) {
            if (i < rule->required) return refuse("source " + std::to_string(i) + " is missing");
            continue;
        }
        if (i >= rule->sources) return refuse("source " + std::to_string(i) + " is not expected");
        // Of no memory, and of sizes that the rule compares with the result's.
        if (node.op == GGML_OP_CONCAT && ggml_is_empty(node.src[i])) continue;
        if (const char * reason = check_tensor(*node.src[i])) return refuse(std::string("a source: ") + reason);
    }
    if (const char * reason = rule->check(node)) return refuse(reason);

    std::vector<IndexInput> inputs;
    index_inputs(node, inputs);
    for (const IndexInput & input : inputs) {
        if (overlap(*input.tensor, node)) return refuse("the result overwrites the indices");
    }
    for (int i = 0; i < GGML_MAX_SRC && copies_memory(node.op); i++) {
        if (!node.src[i] || ggml_is_empty(node.src[i]) || !overlaps_partly(*node.src[i], node)) continue;
        return refuse("the result overlaps source " + std::to_string(i));
    }
    return {};
}

void index_inputs(const ggml_tensor & node, std::vector<IndexInput> & inputs) {
    switch (node.op) {
        case GGML_OP_GET_ROWS: inputs.push_back({node.src[1], 0, node.src[0]->ne[1] - 1, false}); break;
        case GGML_OP_SET_ROWS: inputs.push_back({node.src[1], 0, node.ne[1] - 1, false}); break;
        case GGML_OP_MUL_MAT_ID:
            // The kernel for repacked weights has room for one use of an expert a token.
            inputs.push_back({node.src[2], 0, node.src[0]->ne[2] - 1, node.src[0]->extra != nullptr});
            break;
        case GGML_OP_ADD_ID: inputs.push_back({node.src[2], 0, node.src[1]->ne[1] - 1, false}); break;
        case GGML_OP_SSM_SCAN: inputs.push_back({node.src[6], 0, node.src[0]->ne[3] - 1, false}); break;
        case GGML_OP_ARGSORT: inputs.push_back({node.src[0], 0, 0, false}); break;
        default: break;
    }
}

std::string check_indices(const IndexInput & input) {
    switch (input.tensor->type) {
        case GGML_TYPE_I32: return check_values<int32_t>(input);
        case GGML_TYPE_I64: return check_values<int64_t>(input);
        case GGML_TYPE_F32: return check_no_nan(*input.tensor);
        default: return "indices are not integers";
    }
}

}  // namespace droid::rpc
