#include "drive.h"

#include <numeric>
#include <stdexcept>
#include <vector>

#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"

namespace droid::fuzz {

using droid::rpc::Manifest;
using droid::rpc::Worker;

namespace {

constexpr int64_t rows = 32;
constexpr int64_t tokens = 3;

// Where C code could only return null: why.
[[noreturn]] void give_up(const Worker & worker) {
    if (const auto failure = worker.failure()) throw *failure;
    if (const auto refused = worker.allocation_failure()) throw *refused;
    throw std::logic_error("a call failed, and the worker knows nothing of it");
}

std::vector<float> ramp(int64_t size, float step) {
    std::vector<float> values(static_cast<size_t>(size));
    for (size_t i = 0; i < values.size(); i++) values[i] = step * float(i % 17) - 1;
    return values;
}

std::vector<uint8_t> quantized(const ggml_tensor & tensor) {
    const std::vector<float> values = ramp(ggml_nelements(&tensor), 0.01f);
    std::vector<uint8_t> bytes(ggml_nbytes(&tensor));
    ggml_quantize_chunk(tensor.type, values.data(), bytes.data(), 0, ggml_nrows(&tensor), tensor.ne[0], nullptr);
    return bytes;
}

ggml_context_ptr make_context() {
    return ggml_context_ptr(ggml_init({ggml_tensor_overhead() * 64 + ggml_graph_overhead(), nullptr, true}));
}

}  // namespace

void drive(Worker & worker) {
    const ggml_backend_dev_t device = worker.device();
    const ggml_backend_buffer_type_t type = ggml_backend_dev_buffer_type(device);
    size_t free = 0, total = 0;
    ggml_backend_dev_memory(device, &free, &total);
    const ggml_backend_ptr backend(ggml_backend_dev_init(device, nullptr));
    if (!backend) give_up(worker);

    // Weights, of types with and without a layout of their own on the worker.
    const ggml_context_ptr weights_context = make_context();
    ggml_tensor * f32 = ggml_new_tensor_2d(weights_context.get(), GGML_TYPE_F32, rows, rows);
    ggml_tensor * q4 = ggml_new_tensor_2d(weights_context.get(), GGML_TYPE_Q4_0, rows, rows);
    ggml_tensor * q8 = ggml_new_tensor_2d(weights_context.get(), GGML_TYPE_Q8_0, rows, 8);
    ggml_set_name(f32, "f32.weight");
    ggml_set_name(q4, "q4.weight");
    ggml_set_name(q8, "q8.weight");
    Manifest manifest;
    std::vector<std::pair<ggml_tensor *, std::vector<uint8_t>>> weights;
    for (ggml_tensor * tensor : {f32, q4, q8}) {
        weights.emplace_back(tensor, quantized(*tensor));
        const std::vector<uint8_t> & data = weights.back().second;
        manifest.entries[tensor->name] = {droid::rpc::sha256(data.data(), data.size()), data.size()};
    }
    worker.offer(manifest);
    const ggml_backend_buffer_ptr weights_buffer(ggml_backend_alloc_ctx_tensors_from_buft(weights_context.get(), type));
    if (!weights_buffer) give_up(worker);
    ggml_backend_buffer_set_usage(weights_buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    for (const auto & [tensor, data] : weights) ggml_backend_tensor_set(tensor, data.data(), 0, data.size());

    // A graph like those of a layer.
    const ggml_context_ptr context = make_context();
    ggml_context * c = context.get();
    ggml_tensor * input = ggml_new_tensor_2d(c, GGML_TYPE_F32, rows, tokens);
    ggml_tensor * positions = ggml_new_tensor_1d(c, GGML_TYPE_I32, tokens);
    ggml_tensor * cache = ggml_new_tensor_2d(c, GGML_TYPE_F16, rows, 8);
    ggml_set_input(input);
    ggml_set_input(positions);
    ggml_set_input(cache);
    ggml_cgraph * graph = ggml_new_graph(c);
    ggml_tensor * x = ggml_mul_mat(c, q4, ggml_rms_norm(c, input, 1e-5f));
    x = ggml_reshape_3d(c, x, 8, 4, tokens);
    x = ggml_rope(c, x, positions, 8, 0);
    x = ggml_reshape_2d(c, x, rows, tokens);
    ggml_build_forward_expand(graph, ggml_cpy(c, x, ggml_view_2d(c, cache, rows, tokens, cache->nb[1], cache->nb[1])));
    ggml_tensor * scores = ggml_soft_max(c, ggml_mul_mat(c, cache, x));
    x = ggml_mul_mat(c, ggml_cont(c, ggml_transpose(c, ggml_cast(c, cache, GGML_TYPE_F32))), scores);
    x = ggml_add(c, ggml_silu(c, ggml_mul_mat(c, f32, x)), input);
    x = ggml_mul_mat(c, q8, ggml_get_rows(c, x, positions));
    ggml_set_output(x);
    ggml_build_forward_expand(graph, x);
    for (int i = 0; i < ggml_graph_n_nodes(graph); i++) ggml_backend_dev_supports_op(device, ggml_graph_node(graph, i));
    const ggml_gallocr_ptr allocator(ggml_gallocr_new(type));
    if (!ggml_gallocr_alloc_graph(allocator.get(), graph)) give_up(worker);

    std::vector<float> result(static_cast<size_t>(ggml_nelements(x)));
    std::vector<int32_t> steps(tokens);
    std::iota(steps.begin(), steps.end(), 0);
    for (int i = 0; i < 2; i++) {
        const std::vector<float> values = ramp(rows * tokens, 0.1f * float(i + 1));
        ggml_backend_tensor_set_async(backend.get(), input, values.data(), 0, ggml_nbytes(input));
        ggml_backend_tensor_set(positions, steps.data(), 0, ggml_nbytes(positions));
        if (ggml_backend_graph_compute_async(backend.get(), graph) != GGML_STATUS_SUCCESS) give_up(worker);
        ggml_backend_tensor_get_async(backend.get(), x, result.data(), 0, ggml_nbytes(x));
        ggml_backend_synchronize(backend.get());
    }

    // What contexts do beside computing: a KV cache is cleared, copied and saved.
    const ggml_context_ptr state_context = make_context();
    ggml_tensor * one = ggml_new_tensor_1d(state_context.get(), GGML_TYPE_F32, 300);
    ggml_tensor * other = ggml_new_tensor_1d(state_context.get(), GGML_TYPE_F32, 300);
    const ggml_backend_buffer_ptr state(ggml_backend_alloc_ctx_tensors_from_buft(state_context.get(), type));
    if (!state) give_up(worker);
    ggml_backend_buffer_clear(state.get(), 7);
    ggml_backend_tensor_memset(one, 1, 100, 200);
    ggml_backend_tensor_copy(one, other);
    std::vector<uint8_t> saved(ggml_nbytes(other));
    ggml_backend_tensor_get(other, saved.data(), 0, saved.size());
    ggml_backend_tensor_get(q8, saved.data(), 8, 100);
    worker.offer(manifest);

    // A hidden state from the master to a graph, and back.
    worker.use_half();
    const ggml_backend_ptr cpu(ggml_backend_cpu_init());
    const ggml_context_ptr here_context = make_context(), there_context = make_context();
    ggml_tensor * computed = ggml_neg(here_context.get(), ggml_new_tensor_1d(here_context.get(), GGML_TYPE_F32, 300));
    const ggml_backend_buffer_ptr here(ggml_backend_alloc_ctx_tensors(here_context.get(), cpu.get()));
    const std::vector<float> hidden = ramp(300, 5000);
    ggml_backend_tensor_set(computed, hidden.data(), 0, ggml_nbytes(computed));
    ggml_tensor * received = ggml_new_tensor_1d(there_context.get(), GGML_TYPE_F32, 300);
    ggml_tensor * square = ggml_sqr(there_context.get(), received);
    ggml_cgraph * squares = ggml_new_graph(there_context.get());
    ggml_build_forward_expand(squares, square);
    squares->uid = ggml_graph_next_uid();
    const ggml_backend_buffer_ptr there(ggml_backend_alloc_ctx_tensors_from_buft(there_context.get(), type));
    if (!there) give_up(worker);
    std::vector<float> squared(300);
    for (int i = 0; i < 3; i++) {
        ggml_backend_tensor_copy_async(cpu.get(), backend.get(), computed, received);
        ggml_backend_graph_compute_async(backend.get(), squares);
        ggml_backend_tensor_get(square, squared.data(), 0, ggml_nbytes(square));
    }
}

}  // namespace droid::fuzz
