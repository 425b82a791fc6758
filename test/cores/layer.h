#pragma once

// Two matrices of weights and a graph that uses them, on a worker or here.

#include <random>
#include <string>
#include <vector>

#include "client_rig.h"
#include "ggml-cpu.h"
#include "rpc/client/manifest.h"

namespace droid::test {

inline std::vector<float> random_floats(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> data(count);
    for (float & value : data) value = normal(random);
    return data;
}

inline ggml_backend_dev_t cpu_device() {
    return ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
}

// softmax(norm(x) * w1) * w2 + a view of x
struct Layer {
    static constexpr int64_t n = 96, tokens = 5;  // 96: not a multiple of 512, so that upstream pads quantized rows
    ggml_backend_ptr backend;
    ggml_context_ptr weight_context, context;
    ggml_backend_buffer_ptr weights, rest;
    ggml_tensor *w1, *w2, *x, *out;
    ggml_cgraph * graph;

    // The weights are placed by load(). weight_buffers: their buffer type, when it is not the device's own.
    Layer(ggml_backend_dev_t device, ggml_type type, ggml_backend_buffer_type_t weight_buffers = nullptr)
        : backend(ggml_backend_dev_init(device, nullptr)) {
        context.reset(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        weight_context.reset(ggml_init({8 * ggml_tensor_overhead(), nullptr, true}));
        w1 = ggml_new_tensor_2d(weight_context.get(), type, n, n);
        w2 = ggml_new_tensor_2d(weight_context.get(), type, n, n);
        ggml_set_name(w1, "w1.weight");
        ggml_set_name(w2, "w2.weight");
        x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, n, tokens);
        ggml_set_input(x);
        ggml_tensor * hidden = ggml_mul_mat(context.get(), w1, ggml_rms_norm(context.get(), x, 1e-5f));
        hidden = ggml_mul_mat(context.get(), w2, ggml_soft_max(context.get(), hidden));
        ggml_tensor * half = ggml_view_2d(context.get(), x, n, tokens, x->nb[1], 0);
        out = ggml_add(context.get(), hidden, half);
        ggml_set_output(out);
        graph = ggml_new_graph(context.get());
        ggml_build_forward_expand(graph, out);
        graph->uid = ggml_graph_next_uid();
        const auto buffers = ggml_backend_dev_buffer_type(device);
        weights.reset(
            ggml_backend_alloc_ctx_tensors_from_buft(weight_context.get(), weight_buffers ? weight_buffers : buffers));
        rest.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), buffers));
        CHECK(weights && rest);
        ggml_backend_buffer_set_usage(weights.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    }

    static std::vector<uint8_t> data_of(const ggml_tensor & weight, unsigned seed) {
        const std::vector<float> values = random_floats(n * n, seed);
        std::vector<uint8_t> data(ggml_nbytes(&weight));
        ggml_quantize_chunk(weight.type, values.data(), data.data(), 0, n, n, nullptr);
        return data;
    }

    uint64_t weight_bytes() const { return ggml_nbytes(w1) + ggml_nbytes(w2); }

    droid::rpc::Manifest manifest(unsigned seed = 1) const {
        droid::rpc::Manifest manifest;
        for (const ggml_tensor * weight : {w1, w2}) {
            const std::vector<uint8_t> data = data_of(*weight, seed++);
            manifest.entries[weight->name] = {droid::rpc::sha256(data.data(), data.size()), data.size()};
        }
        return manifest;
    }

    void load(unsigned seed = 1) {
        for (ggml_tensor * weight : {w1, w2}) {
            const std::vector<uint8_t> data = data_of(*weight, seed++);
            ggml_backend_tensor_set(weight, data.data(), 0, data.size());
        }
    }

    std::vector<float> run(unsigned seed) {
        const std::vector<float> in = random_floats(n * tokens, seed);
        ggml_backend_tensor_set(x, in.data(), 0, ggml_nbytes(x));
        ggml_backend_graph_compute(backend.get(), graph);
        std::vector<float> result(in.size());
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        return result;
    }
};

// What a buffer on a worker can do beside being read and written.
inline void check_copies_clears_and_fills(Sum & sum) {
    const std::vector<float> in = random_floats(64, 1);
    std::vector<float> out(64);
    ggml_backend_tensor_set(sum.a, in.data(), 0, 256);
    ggml_backend_tensor_copy(sum.a, sum.b);
    ggml_backend_tensor_get(sum.b, out.data(), 0, 256);
    CHECK(in == out);
    ggml_backend_tensor_memset(sum.b, 0, 0, 128);
    ggml_backend_tensor_get(sum.b, out.data(), 0, 256);
    CHECK(out[31] == 0 && out[32] == in[32]);
    ggml_backend_buffer_clear(sum.buffer.get(), 0);
    ggml_backend_tensor_get(sum.a, out.data(), 252, 4);
    CHECK_EQUAL(out[0], 0.0f);
}

}  // namespace droid::test
