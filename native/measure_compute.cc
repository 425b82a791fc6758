#include "measure_compute.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "errors.h"
#include "ggml-alloc.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-cpu.h"

namespace droid {

namespace {

using Clock = std::chrono::steady_clock;

// Models are mostly of this type, and no cache of a phone holds 16 such matrices: 36 MiB.
constexpr ggml_type weight_type = GGML_TYPE_Q4_K;
constexpr int64_t width = 2048;
constexpr int matrices = 16;
constexpr int64_t batch = 64;
constexpr int batches = 4;  // of the matrices are multiplied with one: arithmetic takes longer than reading weights
constexpr size_t graph_size = 8;  // nodes: a matrix and its input
// Rows of weights that are made; they are repeated, because quantizing takes longer than measuring.
constexpr int64_t made_rows = 32;

ggml_backend_dev_t cpu() {
    return ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
}

// Where a worker keeps weights that such a node uses; see WeightStore.
ggml_backend_buffer_type_t weight_buffers(ggml_tensor & node) {
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    for (ggml_backend_buffer_type_t * type = extra_types ? extra_types(cpu()) : nullptr; type && *type; type++) {
        if (!(*type)->context) continue;
        const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(*type, 0));
        node.src[0]->buffer = empty.get();
        const bool supported = ggml_backend_dev_supports_op(cpu(), &node);
        node.src[0]->buffer = nullptr;
        if (supported) return *type;
    }
    return ggml_backend_cpu_buffer_type();
}

std::vector<float> random_floats(int64_t count) {
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    std::vector<float> values(static_cast<size_t>(count));
    for (float & value : values) value = normal(random);
    return values;
}

// The matrices, each with an input of so many columns.
class Products {
  public:
    Products() {
        weight_context_.reset(ggml_init({matrices * ggml_tensor_overhead(), nullptr, true}));
        context_.reset(ggml_init(
            {(2 * matrices + 8) * ggml_tensor_overhead() + 2 * matrices * ggml_graph_overhead_custom(graph_size, false),
             nullptr, true}));
        ggml_tensor * one = ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, width, 1);
        ggml_tensor * many = ggml_new_tensor_2d(context_.get(), GGML_TYPE_F32, width, batch);
        for (int i = 0; i < matrices; i++) {
            ggml_tensor * weight = ggml_new_tensor_2d(weight_context_.get(), weight_type, width, width);
            ggml_cgraph * token = tokens_.emplace_back(new_graph());
            ggml_build_forward_expand(token, ggml_mul_mat(context_.get(), weight, one));
            if (i >= batches) continue;
            ggml_cgraph * graph = batches_.emplace_back(new_graph());
            ggml_build_forward_expand(graph, ggml_mul_mat(context_.get(), weight, many));
        }
        weights_.reset(ggml_backend_alloc_ctx_tensors_from_buft(weight_context_.get(),
                                                                weight_buffers(*ggml_graph_node(batches_[0], 0))));
        rest_.reset(ggml_backend_alloc_ctx_tensors_from_buft(context_.get(), ggml_backend_cpu_buffer_type()));
        if (!weights_ || !rest_) out_of_memory();
        ggml_backend_buffer_set_usage(weights_.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
        fill(*one, *many);
    }

    static uint64_t weight_bytes() { return matrices * ggml_row_size(weight_type, width) * width; }
    static double batch_flop() { return 2.0 * width * width * batch * batches; }

    // Each of the matrices with one column.
    const std::vector<ggml_cgraph *> & tokens() const { return tokens_; }
    // Some of them with a batch.
    const std::vector<ggml_cgraph *> & batched() const { return batches_; }

    [[noreturn]] static void out_of_memory() {
        throw CodedError("DROID_OUT_OF_MEMORY", "Measuring how fast this device computes needs 64 MiB of memory.");
    }

  private:
    ggml_cgraph * new_graph() const { return ggml_new_graph_custom(context_.get(), graph_size, false); }

    void fill(ggml_tensor & one, ggml_tensor & many) {
        const std::vector<float> values = random_floats(width * batch);
        ggml_backend_tensor_set(&one, values.data(), 0, ggml_nbytes(&one));
        ggml_backend_tensor_set(&many, values.data(), 0, ggml_nbytes(&many));
        const size_t row = ggml_row_size(weight_type, width);
        std::vector<uint8_t> data(row * width);
        ggml_quantize_chunk(weight_type, values.data(), data.data(), 0, made_rows, width, nullptr);
        for (int64_t i = made_rows; i < width; i += made_rows) {
            std::copy_n(data.begin(), row * made_rows, data.begin() + static_cast<ptrdiff_t>(row) * i);
        }
        ggml_context * context = weight_context_.get();
        for (ggml_tensor * weight = ggml_get_first_tensor(context); weight;
             weight = ggml_get_next_tensor(context, weight)) {
            ggml_backend_tensor_set(weight, data.data(), 0, data.size());
        }
    }

    ggml_context_ptr weight_context_, context_;
    ggml_backend_buffer_ptr weights_, rest_;
    std::vector<ggml_cgraph *> tokens_, batches_;
};

class Computer {
  public:
    Computer(int threads, const std::function<bool()> & cancelled) : threads_(threads), cancelled_(cancelled) {
        ggml_threadpool_params params = ggml_threadpool_params_default(threads_);
        params.poll = 0;  // as the workers' compute threads
        pool_.reset(ggml_threadpool_new(&params));
        if (!pool_) Products::out_of_memory();
    }

    // The seconds it takes.
    double run(ggml_cgraph * graph) {
        ggml_cplan plan = ggml_graph_plan(graph, threads_, pool_.get());
        if (work_.size() < plan.work_size) work_.resize(plan.work_size);
        plan.work_data = work_.data();
        plan.abort_callback = [](void * cancelled) {
            return (*static_cast<const std::function<bool()> *>(cancelled))();
        };
        plan.abort_callback_data = const_cast<std::function<bool()> *>(&cancelled_);
        const auto start = Clock::now();
        const ggml_status status = ggml_graph_compute(graph, &plan);
        const std::chrono::duration<double> took = Clock::now() - start;
        if (status == GGML_STATUS_ABORTED) throw CodedError("DROID_CLOSED", "Measuring was cancelled.");
        if (status != GGML_STATUS_SUCCESS) Products::out_of_memory();
        return std::max(took.count(), 1e-9);
    }

  private:
    struct FreePool {
        void operator()(ggml_threadpool * pool) const { ggml_threadpool_free(pool); }
    };

    const int threads_;
    const std::function<bool()> & cancelled_;
    std::unique_ptr<ggml_threadpool, FreePool> pool_;
    std::vector<uint8_t> work_;
};

// A device that does something else meanwhile is interrupted for longer than a product takes, so some products of a few
// rounds are not; a busy one gets more time for them, up to this many times as much.
constexpr int least_rounds = 5;
constexpr int patience = 4;

// The sum over all graphs of the least seconds that each took, in rounds, so that none finds its weights in a cache;
// after one round that does not count.
double fastest(Computer & computer, const std::vector<ggml_cgraph *> & graphs, std::chrono::milliseconds time) {
    std::vector<double> least(graphs.size(), std::numeric_limits<double>::infinity());
    for (ggml_cgraph * graph : graphs) computer.run(graph);
    const auto start = Clock::now();
    for (int round = 0;
         round == 0 || Clock::now() < start + time || (round < least_rounds && Clock::now() < start + patience * time);
         round++) {
        for (size_t i = 0; i < graphs.size(); i++) least[i] = std::min(least[i], computer.run(graphs[i]));
    }
    return std::accumulate(least.begin(), least.end(), 0.0);
}

}  // namespace

ComputeSpeed measure_compute(int threads, std::chrono::milliseconds time, const std::function<bool()> & cancelled) {
    const Products products;
    Computer computer(std::clamp(threads, 1, GGML_MAX_N_THREADS), cancelled);
    ComputeSpeed speed;
    speed.weight_bytes_per_second =
        static_cast<double>(Products::weight_bytes()) / fastest(computer, products.tokens(), time / 2);
    speed.flops_per_second = Products::batch_flop() / fastest(computer, products.batched(), time / 2);
    return speed;
}

}  // namespace droid
