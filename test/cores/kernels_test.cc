/** Repacked weights as ggml's CPU backend multiplies with them: in all shapes, batches and numbers of threads. */
#include <algorithm>
#include <memory>
#include <string>

#include "check.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"
#include "kernel_reference.h"

using namespace droid::test;

namespace {

ggml_backend_dev_t cpu() {
    return ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
}

// The buffer type of native/kernels/, or null where it has no kernels for the processor.
ggml_backend_buffer_type_t repacked_type() {
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t * type = extra_types(cpu()); *type; type++) {
        if (std::string(ggml_backend_buft_name(*type)) == "CPU_INTERLEAVED") return *type;
    }
    return nullptr;
}

bool has_kernels(int bits) {
    if (!repacked_type()) return false;
#if defined(__x86_64__)
    return bits == 5 ? ggml_cpu_has_avx2() : ggml_cpu_has_avx512_vnni() || ggml_cpu_has_avx_vnni();
#else
    return bits == 5;
#endif
}

ggml_type type_of(int bits) {
    return bits == 5 ? GGML_TYPE_Q5_0 : GGML_TYPE_Q8_0;
}

constexpr size_t graph_size = 8;

ggml_context_ptr new_context() {
    return ggml_context_ptr(
        ggml_init({16 * ggml_tensor_overhead() + 4 * ggml_graph_overhead_custom(graph_size, false), nullptr, true}));
}

struct Repacked {
    ggml_context_ptr context;
    ggml_tensor * tensor;
    ggml_backend_buffer_ptr buffer;
};

Repacked repack(const PlainWeights & weights) {
    Repacked repacked{new_context(), nullptr, nullptr};
    repacked.tensor = ggml_new_tensor_2d(repacked.context.get(), type_of(weights.bits), weights.columns, weights.rows);
    repacked.buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(repacked.context.get(), repacked_type()));
    CHECK(repacked.buffer != nullptr);
    CHECK_EQUAL(ggml_nbytes(repacked.tensor), weights.data.size());
    ggml_backend_tensor_set(repacked.tensor, weights.data.data(), 0, weights.data.size());
    return repacked;
}

// Rows of the input; `padding` floats lie between two of them.
struct Shape {
    int64_t rows, planes = 1, volumes = 1, padding = 0;
};

class Product {
  public:
    Product(ggml_tensor * weights, const Shape & shape, std::mt19937 & random) : context_(new_context()) {
        ggml_context * context = context_.get();
        whole_ = ggml_new_tensor_4d(context, GGML_TYPE_F32, weights->ne[0] + shape.padding, shape.rows, shape.planes,
                                    shape.volumes);
        input_ = ggml_view_4d(context, whole_, weights->ne[0], shape.rows, shape.planes, shape.volumes, whole_->nb[1],
                              whole_->nb[2], whole_->nb[3], 0);
        result_ = ggml_mul_mat(context, weights, input_);
        buffer_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context, ggml_backend_cpu_buffer_type()));
        auto * values = static_cast<float *>(whole_->data);
        std::normal_distribution<float> normal;
        for (int64_t i = 0; i < ggml_nelements(whole_); i++) {
            // Rows of zeros, very small and very large numbers among them.
            const int64_t row = i / whole_->ne[0] % 5;
            values[i] = normal(random) * (row == 1 ? 0 : row == 2 ? 1e-6f : row == 3 ? 1e5f : 1);
        }
    }

    ggml_tensor * node() const { return result_; }

    std::vector<float> compute(int threads) const {
        ggml_cgraph * graph = ggml_new_graph_custom(context_.get(), graph_size, false);
        ggml_build_forward_expand(graph, result_);
        ggml_threadpool_params params = ggml_threadpool_params_default(threads);
        const std::unique_ptr<ggml_threadpool, void (*)(ggml_threadpool *)> pool(ggml_threadpool_new(&params),
                                                                                 ggml_threadpool_free);
        ggml_cplan plan = ggml_graph_plan(graph, threads, pool.get());
        std::vector<uint8_t> work(plan.work_size);
        plan.work_data = work.data();
        CHECK(ggml_graph_compute(graph, &plan) == GGML_STATUS_SUCCESS);
        const auto * results = static_cast<const float *>(result_->data);
        return {results, results + ggml_nelements(result_)};
    }

    void check(const PlainWeights & weights, const std::vector<float> & results, int64_t first_row = 0) const {
        const int64_t blocks = weights.columns / block_size;
        const ggml_from_float_t quantize = ggml_get_type_traits_cpu(GGML_TYPE_Q8_0)->from_float;
        std::vector<uint8_t> quantized(ggml_row_size(GGML_TYPE_Q8_0, weights.columns));
        for (int64_t row = 0; row < ggml_nrows(input_); row++) {
            // The padded rows lie behind each other whatever their plane.
            quantize(static_cast<const float *>(whole_->data) + row * whole_->ne[0], quantized.data(), weights.columns);
            const PlainWeights with{8, 1, weights.columns, quantized};
            for (int64_t i = 0; i < result_->ne[0]; i++) {
                Expected expected;
                for (int64_t block = 0; block < blocks; block++) {
                    int sum = 0;
                    for (int64_t k = 0; k < block_size; k++) {
                        sum += weights.value(first_row + i, block, k) * with.value(0, block, k);
                    }
                    expected.add_block(weights.scale(first_row + i, block) * with.scale(0, block) * sum, blocks);
                }
                const float actual = results[static_cast<size_t>(row * result_->ne[0] + i)];
                if (expected.admits(actual)) continue;
                throw Failure("row " + std::to_string(row) + ", result " + std::to_string(i) + ": " +
                              std::to_string(actual) + " instead of " + std::to_string(expected.value));
            }
        }
    }

  private:
    ggml_context_ptr context_;
    ggml_tensor *whole_, *input_, *result_;
    ggml_backend_buffer_ptr buffer_;
};

void check_products(int bits) {
    std::mt19937 random(3);
    for (const auto & [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{{16, 32}, {48, 896}, {272, 96}}) {
        const PlainWeights weights = random_weights(bits, rows, columns, random);
        const Repacked repacked = repack(weights);
        std::vector<Shape> shapes;
        for (int64_t batch = 1; batch <= 17; batch++) shapes.push_back({batch});
        shapes.insert(shapes.end(), {{40}, {3, 2}, {5, 3, 2}, {2, 2, 2, 7}, {13, 1, 1, 4}});
        // More than is kept in the cache at once.
        if (columns == 896) shapes.push_back({300});
        for (const Shape & shape : shapes) {
            const Product product(repacked.tensor, shape, random);
            CHECK(ggml_backend_dev_supports_op(cpu(), product.node()));
            std::vector<float> first;
            for (int threads = 1; threads <= 3; threads++) {
                const std::vector<float> results = product.compute(threads);
                if (threads == 1) product.check(weights, first = results);
                CHECK(results == first);
            }
        }
    }
}

bool supports(int bits, int64_t columns, int64_t rows, ggml_op op) {
    const ggml_context_ptr context = new_context();
    ggml_tensor * weights = ggml_new_tensor_2d(context.get(), type_of(bits), columns, rows);
    ggml_tensor * ids = ggml_new_tensor_1d(context.get(), GGML_TYPE_I32, 1);
    ggml_tensor * input = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, columns, 1);
    ggml_tensor * node = op == GGML_OP_GET_ROWS ? ggml_get_rows(context.get(), weights, ids)
                                                : ggml_mul_mat(context.get(), weights, input);
    const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(repacked_type(), 0));
    weights->buffer = empty.get();
    return ggml_backend_dev_supports_op(cpu(), node);
}

}  // namespace

TEST(repacked_q5_0_gives_the_products) {
    if (has_kernels(5)) check_products(5);
}

TEST(repacked_q8_0_gives_the_products) {
    if (has_kernels(8)) check_products(8);
}

TEST(repacked_weights_are_what_there_are_kernels_for) {
    if (!repacked_type()) return;
    CHECK_EQUAL(supports(5, 896, 128, GGML_OP_MUL_MAT), has_kernels(5));
    CHECK_EQUAL(supports(8, 896, 128, GGML_OP_MUL_MAT), has_kernels(8));
    // Rows that fill no group, and an embedding, whose rows are read one by one.
    CHECK(!supports(5, 896, 130, GGML_OP_MUL_MAT));
    CHECK(!supports(5, 896, 128, GGML_OP_GET_ROWS));
    CHECK(!supports(8, 896, 128, GGML_OP_GET_ROWS));
}

TEST(repacked_weights_can_be_viewed_by_groups_of_rows) {
    if (!has_kernels(5)) return;
    std::mt19937 random(4);
    const PlainWeights weights = random_weights(5, 64, 96, random);
    const Repacked repacked = repack(weights);
    const ggml_context_ptr context = new_context();
    const auto view = [&](int64_t rows, int64_t first) {
        ggml_tensor * tensor = ggml_view_2d(context.get(), repacked.tensor, 96, rows, repacked.tensor->nb[1],
                                            static_cast<size_t>(first) * repacked.tensor->nb[1]);
        CHECK(ggml_backend_view_init(tensor) == GGML_STATUS_SUCCESS);
        return tensor;
    };
    const Product product(view(32, 16), {3}, random);
    CHECK(ggml_backend_dev_supports_op(cpu(), product.node()));
    product.check(weights, product.compute(2), 16);
    const Product shifted(view(32, 1), {3}, random);
    CHECK(!ggml_backend_dev_supports_op(cpu(), shifted.node()));
}
