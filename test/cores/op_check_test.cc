#include "rpc/server/op_check.h"

#include <functional>

#include "op_graph.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

TEST(op_check_allows_what_it_has_nodes_for) {
    std::map<int, int> seen;
    Arena arena;
    for (size_t kind = 0; kind < node_kinds().size(); kind++) {
        for (uint64_t i = 0; i < 100; i++) {
            Random random{i * 1000 + kind};
            Placed placed(make_graph(node_kinds()[kind], random), arena, random);
            if (!placed.valid() && std::strstr(node_kinds()[kind].name, "repacked")) continue;
            CHECK(placed.valid());
            const std::string reason = placed.check();
            if (!reason.empty())
                throw Failure(std::string(node_kinds()[kind].name) + ": " + reason + "\n" + placed.text());
            for (size_t j = 0; j < placed.size(); j++) seen[placed.node(j).op]++;
        }
    }
    for (int op = 0; op < GGML_OP_COUNT; op++) {
        if (op_allowed(static_cast<ggml_op>(op)) != (seen.count(op) > 0)) {
            throw Failure(std::string("no node of ") + ggml_op_name(static_cast<ggml_op>(op)));
        }
    }
    for (ggml_op op : {GGML_OP_MAP_CUSTOM1, GGML_OP_MAP_CUSTOM2, GGML_OP_MAP_CUSTOM3, GGML_OP_CUSTOM, GGML_OP_COUNT,
                       GGML_OP_OPT_STEP_ADAMW, GGML_OP_CROSS_ENTROPY_LOSS}) {
        CHECK(!op_allowed(op));
    }
    CHECK(!op_allowed(static_cast<ggml_op>(-1)));
    CHECK(!op_allowed(static_cast<ggml_op>(100000)));
}

namespace {

struct Mistake {
    const char * kind;
    std::function<void(ggml_tensor & node, std::vector<ggml_tensor *> & src)> make;
    const char * reason;
};

void set_f32(ggml_tensor & node, int i, float value) {
    std::memcpy(&node.op_params[i], &value, sizeof(value));
}

void resize(ggml_tensor & t, int dim, int64_t ne) {
    t.ne[dim] = ne;
    pack(t);
}

using S = std::vector<ggml_tensor *>;

const std::vector<Mistake> & mistakes() {
    static const std::vector<Mistake> list = {
        {"add", [](ggml_tensor & n, S &) { n.op = GGML_OP_MAP_CUSTOM1; }, "not allowed"},
        {"add", [](ggml_tensor & n, S &) { n.op = GGML_OP_COUNT; }, "not allowed"},
        {"add", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, "another shape"},
        {"add", [](ggml_tensor &, S & s) { resize(*s[1], 1, s[0]->ne[1] + 1); }, "broadcast"},
        {"add",
         [](ggml_tensor & n, S &) {
             n.type = GGML_TYPE_I32;
             pack(n);
         },
         "result type"},
        {"add",
         [](ggml_tensor &, S & s) {
             s[0]->type = GGML_TYPE_I32;
             pack(*s[0]);
         },
         "float type"},
        {"add",
         [](ggml_tensor &, S & s) {
             s[1]->type = GGML_TYPE_I32;
             pack(*s[1]);
         },
         "operand types"},
        {"mul",
         [](ggml_tensor & n, S & s) {
             resize(n, 0, 4);
             *s[0] = n;
             n.nb[0] *= 2;
         },
         ""},
        {"div",
         [](ggml_tensor & n, S & s) {
             resize(n, 1, 1 << 20);
             resize(n, 2, 1 << 20);
             *s[0] = n;
         },
         "too many rows"},
        {"sub",
         [](ggml_tensor & n, S & s) {
             resize(n, 0, 64);
             for (size_t & nb : n.nb) nb = 0;
             *s[0] = n;
         },
         "overlap"},
        {"add_id", [](ggml_tensor &, S & s) { s[2]->type = GGML_TYPE_F32; }, "wrong types"},
        {"add_id", [](ggml_tensor &, S & s) { s[2]->ne[1]++; }, "one id"},
        {"unary", [](ggml_tensor & n, S &) { n.op_params[0] = GGML_UNARY_OP_COUNT; }, "unknown"},
        {"unary", [](ggml_tensor & n, S &) { n.op_params[0] = -1; }, "unknown"},
        {"glu", [](ggml_tensor & n, S &) { n.op_params[0] = GGML_GLU_OP_COUNT; }, "unknown"},
        {"glu", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, ""},
        {"scale", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "another shape"},
        {"clamp",
         [](ggml_tensor & n, S & s) {
             resize(n, 1, 1);
             resize(n, 2, 3);
             *s[0] = n;
             n.nb[1] *= 7;
         },
         "spaced"},
        {"tri", [](ggml_tensor & n, S &) { n.op_params[0] = 4; }, "unknown"},
        {"arange", [](ggml_tensor & n, S &) { set_f32(n, 2, 0); }, "steps"},
        {"arange", [](ggml_tensor & n, S &) { set_f32(n, 2, -1); }, "steps"},
        {"arange", [](ggml_tensor & n, S &) { set_f32(n, 1, NAN); }, "steps"},
        {"arange", [](ggml_tensor & n, S &) { set_f32(n, 1, 1e20f); }, "steps"},
        {"arange", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, "one element a step"},
        {"rms_norm", [](ggml_tensor & n, S &) { set_f32(n, 0, -1); }, "epsilon"},
        {"norm", [](ggml_tensor & n, S &) { set_f32(n, 0, NAN); }, "epsilon"},
        {"group_norm", [](ggml_tensor & n, S &) { n.op_params[0] = 0; }, "groups"},
        {"sum", [](ggml_tensor & n, S &) { resize(n, 0, 2); }, "one number"},
        {"argmax", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, "one index"},
        {"argsort", [](ggml_tensor & n, S &) { n.op_params[0] = 2; }, "unknown"},
        {"argsort", [](ggml_tensor & n, S & s) { n.data = s[0]->data; }, "overwrites"},
        {"top_k", [](ggml_tensor & n, S & s) { resize(n, 0, s[0]->ne[0] + 1); }, "more than"},
        {"pool", [](ggml_tensor & n, S &) { n.op_params[1] = 0; }, "impossible"},
        {"pool", [](ggml_tensor & n, S &) { n.op_params[3] = 0; }, "impossible"},
        {"pool", [](ggml_tensor & n, S &) { n.op_params[0] = GGML_OP_POOL_COUNT; }, "unknown"},
        {"pool", [](ggml_tensor & n, S &) { n.op_params[1] = INT32_MAX; }, "larger"},
        {"cont", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "number of elements"},
        {"cont",
         [](ggml_tensor & n, S &) {
             n.type = n.type == GGML_TYPE_F32 ? GGML_TYPE_F16 : GGML_TYPE_F32;
             pack(n);
         },
         ""},
        {"cast",
         [](ggml_tensor & n, S &) {
             n.type = GGML_TYPE_I8;
             pack(n);
         },
         ""},
        {"cpy",
         [](ggml_tensor & n, S &) {
             n.type = GGML_TYPE_I64;
             pack(n);
         },
         ""},
        {"set", [](ggml_tensor & n, S &) { n.op_params[3] += 4 * static_cast<int>(ggml_nelements(&n)); }, "exceeds"},
        {"set", [](ggml_tensor & n, S &) { n.op_params[3] = -4; }, "offset"},
        {"set", [](ggml_tensor & n, S & s) { n.data = static_cast<char *>(s[0]->data) + 4; }, "overlaps source 0"},
        {"concat", [](ggml_tensor & n, S & s) { n.data = s[1]->data; }, "overlaps source 1"},
        {"set",
         [](ggml_tensor & n, S & s) {
             resize(*s[1], 1, 2);
             n.op_params[0] = INT32_MAX & ~3;
         },
         "exceeds"},
        {"set",
         [](ggml_tensor & n, S & s) {
             resize(*s[1], 3, 2);
             n.op_params[2] = -4;
         },
         "stride"},
        {"repeat",
         [](ggml_tensor & n, S & s) {
             resize(n, 3, 3);
             resize(*s[0], 3, 2);
         },
         "repetition"},
        {"concat", [](ggml_tensor & n, S &) { n.op_params[0] = 4; }, "dimension"},
        {"concat",
         [](ggml_tensor & n, S &) {
             n.ne[n.op_params[0]]++;
             n.ne[0] = n.ne[0] / 32 * 32 + 32;
             pack(n);
         },
         ""},
        {"pad", [](ggml_tensor & n, S &) { n.op_params[1]++; }, "size"},
        {"pad", [](ggml_tensor & n, S &) { n.op_params[0] = -1; }, "negative"},
        {"pad", [](ggml_tensor & n, S &) { n.op_params[8] = 1; }, "circular"},
        {"get_rows", [](ggml_tensor &, S & s) { s[1]->type = GGML_TYPE_F32; }, "indices"},
        {"get_rows", [](ggml_tensor &, S & s) { resize(*s[1], 3, 2); }, "wrong shape"},
        {"get_rows", [](ggml_tensor & n, S & s) { n.data = s[1]->data; }, "overwrites"},
        {"set_rows",
         [](ggml_tensor &, S & s) {
             s[1]->type = GGML_TYPE_F32;
             pack(*s[1]);
         },
         "indices"},
        {"set_rows",
         [](ggml_tensor & n, S & s) {
             s[0]->type = GGML_TYPE_F16;
             pack(*s[0]);
             n.type = GGML_TYPE_F32;
             pack(n);
         },
         "safe kernel"},
        {"set_rows", [](ggml_tensor &, S & s) { resize(*s[1], 0, s[1]->ne[0] + 1); }, "wrong shape"},
        {"set_rows", [](ggml_tensor & n, S & s) { s[1]->data = n.data; }, "overwrites"},
        {"conv", [](ggml_tensor & n, S &) { n.op_params[6] = 1; }, "one-dimensional"},
        {"conv", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, "size"},
        {"mul_mat", [](ggml_tensor & n, S &) { resize(n, 0, n.ne[0] + 1); }, ""},
        {"mul_mat", [](ggml_tensor &, S & s) { resize(*s[0], 2, s[0]->ne[2] * 3); }, "broadcast"},
        {"mul_mat",
         [](ggml_tensor &, S & s) {
             s[0]->type = GGML_TYPE_I32;
             pack(*s[0]);
         },
         "weights"},
        {"mul_mat",
         [](ggml_tensor &, S & s) {
             s[1]->type = GGML_TYPE_I32;
             pack(*s[1]);
         },
         "input"},
        {"mul_mat",
         [](ggml_tensor & n, S & s) {
             n.op_params[1] = 1;
             resize(*s[0], 1, s[0]->ne[0] * 2);
             resize(n, 0, s[0]->ne[1]);
         },
         "Hadamard"},
        {"hadamard",
         [](ggml_tensor &, S & s) {
             s[1]->type = GGML_TYPE_BF16;
             pack(*s[1]);
         },
         "input"},
        {"mul_mat_id", [](ggml_tensor &, S & s) { s[2]->type = GGML_TYPE_F32; }, "ids"},
        {"mul_mat_id", [](ggml_tensor &, S & s) { resize(*s[0], 3, 2); }, "dimensions"},
        {"mul_mat_id",
         [](ggml_tensor & n, S & s) {
             s[0]->type = s[1]->type = GGML_TYPE_F32;
             *s[0]->ne = *s[1]->ne = 1;
             resize(*s[0], 1, 1);
             resize(*s[0], 2, 1 << 20);
             resize(*s[1], 1, 1);
             resize(*s[1], 2, 1 << 20);
             resize(*s[2], 0, 1);
             resize(*s[2], 1, 1 << 20);
             n.ne[0] = n.ne[1] = 1;
             resize(n, 2, 1 << 20);
         },
         "too many experts"},
        {"solve_tri", [](ggml_tensor &, S & s) { resize(*s[0], 0, s[0]->ne[0] + 1); }, "shapes"},
        {"soft_max", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "another shape"},
        {"rope", [](ggml_tensor & n, S &) { n.op_params[1] = 0; }, "pairs"},
        {"rope", [](ggml_tensor & n, S &) { n.op_params[1] = -2; }, "pairs"},
        {"rope", [](ggml_tensor & n, S &) { n.op_params[1] = static_cast<int>(n.ne[0]) + 2; }, "exceeds"},
        {"rope", [](ggml_tensor & n, S &) { n.op_params[15] = INT32_MAX - 1; }, "exceeds"},
        {"rope", [](ggml_tensor & n, S &) { n.op_params[2] = 4; }, "mode"},
        {"rope", [](ggml_tensor &, S & s) { resize(*s[1], 0, s[1]->ne[0] + 1); }, "position"},
        {"rope",
         [](ggml_tensor & n, S &) {
             n.op_params[15] = 0;
             n.op_params[2] = GGML_ROPE_TYPE_MROPE;
             n.op_params[11] = 1;
             n.op_params[14] = 1;
             n.op_params[12] = n.op_params[13] = 0;
         },
         ""},
        {"flash_attn", [](ggml_tensor & n, S &) { n.op_params[3] = 7; }, "precision"},
        {"flash_attn", [](ggml_tensor &, S & s) { resize(*s[2], 1, s[2]->ne[1] + 1); }, "shapes"},
        {"flash_attn", [](ggml_tensor &, S & s) { resize(*s[1], 3, s[0]->ne[3] * 2); }, "broadcast"},
        {"flash_attn",
         [](ggml_tensor & n, S &) {
             n.nb[1] += 4;
             n.nb[2] *= 2;
             n.nb[3] *= 4;
         },
         "contiguous"},
        {"lightning_indexer", [](ggml_tensor &, S & s) { resize(*s[3], 0, s[3]->ne[0] + 1); }, "mask"},
        {"ssm_conv", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "result"},
        {"ssm_scan", [](ggml_tensor & n, S &) { n.op_params[0] = 0; }, "state"},
        {"ssm_scan", [](ggml_tensor & n, S &) { n.op_params[0] += 1; }, ""},
        {"ssm_scan", [](ggml_tensor &, S & s) { s[0]->nb[3] *= 2; }, "contiguous"},
        {"wkv",
         [](ggml_tensor & n, S & s) {
             ggml_tensor & state = *s[n.op == GGML_OP_RWKV_WKV6 ? 5 : n.op == GGML_OP_RWKV_WKV7 ? 6 : 4];
             resize(state, 1, state.ne[1] * 50);
         },
         ""},
        {"gated_delta_net", [](ggml_tensor & n, S &) { n.op_params[0] = 0; }, "state"},
        {"gated_delta_net", [](ggml_tensor & n, S &) { n.op_params[0] = INT32_MAX; }, "result"},
        {"hc_comb", [](ggml_tensor & n, S &) { n.op_params[1] = INT32_MAX; }, "iterations"},
        {"hc_pre", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "shape"},
        {"hc_post", [](ggml_tensor & n, S &) { resize(n, 1, n.ne[1] + 1); }, "shape"},
    };
    return list;
}

const NodeKind & kind_named(const char * name) {
    for (const NodeKind & kind : node_kinds()) {
        if (!std::strcmp(kind.name, name)) return kind;
    }
    throw Failure(name);
}

}  // namespace

TEST(op_check_refuses_each_mistake) {
    Arena arena;
    for (const Mistake & mistake : mistakes()) {
        for (uint64_t i = 0; i < 30; i++) {
            Random random{i};
            Placed placed(make_graph(kind_named(mistake.kind), random), arena, random);
            CHECK(placed.valid());
            ggml_tensor & node = placed.node(placed.size() - 1);
            std::vector<ggml_tensor *> src(node.src, node.src + GGML_MAX_SRC);
            mistake.make(node, src);
            const std::string reason = check_node(node);
            if (reason.empty() || reason.find(mistake.reason) == std::string::npos) {
                throw Failure(std::string(mistake.kind) + ", wanted '" + mistake.reason + "', got '" + reason + "'\n" +
                              placed.text());
            }
        }
    }
}

TEST(op_check_refuses_missing_and_needless_sources) {
    Arena arena;
    for (const NodeKind & kind : node_kinds()) {
        Random random{7};
        Placed placed(make_graph(kind, random), arena, random);
        if (!placed.valid()) continue;
        ggml_tensor & node = placed.node(placed.size() - 1);
        const bool computes = node.op > GGML_OP_NONE && node.op != GGML_OP_RESHAPE && node.op != GGML_OP_VIEW &&
                              node.op != GGML_OP_PERMUTE && node.op != GGML_OP_TRANSPOSE;
        if (!computes) continue;
        if (node.src[0]) {
            ggml_tensor * first = node.src[0];
            node.src[0] = nullptr;
            CHECK(check_node(node).find("missing") != std::string::npos);
            node.src[0] = first;
        }
        node.src[9] = &node;
        CHECK(check_node(node).find("not expected") != std::string::npos);
    }
}

// Models have frequency factors for the rotated part of a head only, and the kernel reads on.
TEST(op_check_wants_frequency_factors_in_their_buffer) {
    alignas(64) static char memory[4096];
    const Context context = make_context();
    ggml_context * c = context.get();
    ggml_tensor * factors = ggml_new_tensor_1d(c, GGML_TYPE_F32, 8);
    ggml_tensor * node =
        ggml_rope_ext(c, ggml_new_tensor_3d(c, GGML_TYPE_F32, 64, 2, 3), ggml_new_tensor_1d(c, GGML_TYPE_I32, 3),
                      factors, 16, 0, 4096, 1e4f, 1, 0, 1, 32, 1);
    factors->data = memory;
    CHECK(check_node(*node).find("frequency factors") != std::string::npos);
    ggml_backend_buffer_t buffer = ggml_backend_cpu_buffer_from_ptr(memory, sizeof(memory));
    factors->buffer = buffer;
    CHECK_EQUAL(check_node(*node), "");
    factors->data = memory + sizeof(memory) - 32 * sizeof(float);
    CHECK_EQUAL(check_node(*node), "");
    factors->data = memory + sizeof(memory) - 31 * sizeof(float);
    CHECK(check_node(*node).find("frequency factors") != std::string::npos);
    ggml_backend_buffer_free(buffer);
}

// A repacked expert's list of tokens has room for each token once.
TEST(op_check_wants_distinct_experts_of_repacked_weights) {
    Arena arena;
    Random random{3};
    Placed placed(make_graph(kind_named("mul_mat_id_repacked"), random), arena, random);
    if (!placed.valid()) return;  // a CPU without kernels for repacked weights
    std::vector<IndexInput> inputs;
    index_inputs(placed.node(0), inputs);
    CHECK_EQUAL(inputs.size(), size_t(1));
    CHECK_EQUAL(inputs[0].distinct, placed.node(0).src[0]->extra != nullptr);
    CHECK_EQUAL(inputs[0].last, placed.node(0).src[0]->ne[2] - 1);
}

TEST(op_check_reads_indices_where_they_are) {
    int32_t values[12] = {0, 9, 1, 9, 2, 9, 9, 9, 9, 9, 9, 9};
    ggml_tensor t{};
    t.type = GGML_TYPE_I32;
    t.data = values;
    t.ne[0] = 3;
    t.ne[1] = t.ne[2] = t.ne[3] = 1;
    t.nb[0] = 8;
    t.nb[1] = t.nb[2] = t.nb[3] = 24;
    CHECK_EQUAL(check_indices({&t, 0, 2, false}), "");
    CHECK_EQUAL(check_indices({&t, 0, 2, true}), "");
    CHECK(!check_indices({&t, 0, 1, false}).empty());
    CHECK(!check_indices({&t, 1, 2, false}).empty());
    values[2] = 2;
    CHECK_EQUAL(check_indices({&t, 0, 2, false}), "");
    CHECK(!check_indices({&t, 0, 2, true}).empty());
    t.nb[0] = 4;
    CHECK(!check_indices({&t, 0, 2, false}).empty());

    int64_t wide[2] = {1, int64_t(1) << 32};
    t.type = GGML_TYPE_I64;
    t.data = wide;
    t.ne[0] = 2;
    t.nb[0] = 8;
    CHECK(!check_indices({&t, 0, 5, false}).empty());
    wide[1] = 0;
    CHECK_EQUAL(check_indices({&t, 0, 5, false}), "");

    float numbers[2] = {1, -INFINITY};
    t.type = GGML_TYPE_F32;
    t.data = numbers;
    t.nb[0] = 4;
    CHECK_EQUAL(check_indices({&t, 0, 0, false}), "");
    numbers[1] = NAN;
    CHECK(!check_indices({&t, 0, 0, false}).empty());
}

TEST(op_check_allows_to_concatenate_nothing) {
    const ggml_init_params params = {1 << 16, nullptr, true};
    const std::unique_ptr<ggml_context, decltype(&ggml_free)> context(ggml_init(params), ggml_free);
    alignas(64) static float memory[512];
    const auto make = [&](int64_t ne0, int64_t ne1) {
        ggml_tensor * t = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, ne0, ne1);
        t->data = ne0 * ne1 > 0 ? memory : nullptr;
        return t;
    };
    for (const bool first : {true, false}) {
        ggml_tensor * some = make(8, 3);
        ggml_tensor * nothing = make(0, 3);
        ggml_tensor * both =
            first ? ggml_concat(context.get(), nothing, some, 0) : ggml_concat(context.get(), some, nothing, 0);
        both->data = memory + 256;
        CHECK(check_node(*both).empty());
        nothing->ne[1] = 4;
        CHECK(check_node(*both).find("shapes") != std::string::npos);
        nothing->ne[1] = 3;
        both->op = GGML_OP_ADD;
        CHECK(check_node(*both).find("size") != std::string::npos);
    }
}
