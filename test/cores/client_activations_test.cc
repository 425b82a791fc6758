// What goes from device to device between graphs, between both ends of this package.

#include <cmath>
#include <functional>

#include "layer.h"
#include "test_server.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

namespace {

// A tensor that the CPU has computed, as the scheduler hands it on.
struct Computed {
    ggml_backend_ptr backend{ggml_backend_dev_init(cpu_device(), nullptr)};
    ggml_context_ptr context{ggml_init({16 * ggml_tensor_overhead(), nullptr, true})};
    ggml_tensor * tensor;
    ggml_backend_buffer_ptr buffer;

    explicit Computed(const std::vector<float> & values) {
        ggml_tensor * x = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, static_cast<int64_t>(values.size()));
        tensor = ggml_neg(context.get(), x);
        buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
        ggml_backend_tensor_set(tensor, values.data(), 0, ggml_nbytes(tensor));
    }
};

}  // namespace

TEST(activations_travel_as_halves_only_when_asked) {
    TestServer server(small());
    std::vector<float> values = random_floats(4096, 1);
    values[5] = 3e5f;  // beyond f16
    for (const bool half : {false, true}) {
        const auto worker = connect(server.server.port());
        if (half) worker->use_half();
        const WorkerCounters & counters = worker->counters();
        Sum sum(worker->device(), 4096);
        const Computed computed(values);
        std::vector<float> got(4096), result(4096);
        const auto sent_by = [&](const std::function<void()> & action) {
            const uint64_t before = counters.bytes_sent;
            action();
            ggml_backend_tensor_get(sum.a, got.data(), 0, 4 * got.size());  // an input, so exactly as it is there
            return counters.bytes_sent - before;
        };
        const uint64_t sent = sent_by(
            [&] { ggml_backend_tensor_copy_async(computed.backend.get(), sum.backend.get(), computed.tensor, sum.a); });
        CHECK_EQUAL(sent > 4 * 4096, !half);
        CHECK(sent > 2 * 4096);
        CHECK_EQUAL(got == values, !half);
        for (size_t i = 0; i < got.size(); i++) {
            CHECK(std::fabs(got[i] - values[i]) <= std::fabs(values[i]) / 2048 + 1e-6f);
        }
        // What a graph makes of it.
        const std::vector<float> zeros(4096);
        ggml_backend_tensor_set(sum.b, zeros.data(), 0, 4 * zeros.size());
        for (int i = 0; i < 3; i++) {  // the second and third are predicted
            ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
            const uint64_t before = counters.bytes_received;
            ggml_backend_tensor_get(sum.out, result.data(), 0, 4 * result.size());
            const uint64_t received = counters.bytes_received - before;
            CHECK_EQUAL(received, (half ? sizeof(HalfAnswer) + 2 * 4096 : 8 + 4 * 4096) + sizeof(uint64_t));
            for (size_t j = 0; j < result.size(); j++) {
                const float exact = got[j] * got[j];
                CHECK(std::fabs(result[j] - exact) <= exact / 2048 + 1.0f);  // all share the exponent of 9e10
            }
        }
        // Results that leave the graph, and what the user puts in, are exact.
        ggml_set_output(sum.out);
        ggml_backend_tensor_get(sum.out, result.data(), 0, 4 * result.size());
        for (size_t j = 0; j < result.size(); j++) CHECK_EQUAL(result[j], got[j] * got[j]);
        ggml_set_input(computed.tensor);
        sent_by(
            [&] { ggml_backend_tensor_copy_async(computed.backend.get(), sum.backend.get(), computed.tensor, sum.a); });
        CHECK(got == values);
        CHECK(!worker->failure());
    }
}

TEST(inputs_that_repeat_themselves_are_packed) {
    TestServer server(small());
    const auto worker = connect(server.server.port());
    Sum sum(worker->device(), 4096);
    sum.step(1, 2);
    const uint64_t before = worker->counters().bytes_sent;
    CHECK_EQUAL(sum.step(3, 4)[4095], 13.0f);
    CHECK(worker->counters().bytes_sent - before < 256);
}
