#include "check.h"
#include "ggml-cpp.h"
#include "ggml-impl.h"
#include "rpc/client/patience.h"
#include "rpc/graph_work.h"

using droid::rpc::graph_work;
using droid::rpc::Patience;

TEST(work_is_what_the_matrices_take) {
    const ggml_context_ptr context(ggml_init({16 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * weights = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, 100, 200);
    ggml_tensor * in = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 100, 7);
    ggml_tensor * view = ggml_view_1d(context.get(), ggml_mul_mat(context.get(), weights, in), 10, 0);
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, view);
    CHECK_EQUAL(graph_work(*graph), 2.0 * 100 * 200 * 7);
}

TEST(the_wait_grows_with_the_work_and_ends_with_it) {
    Patience patience;
    CHECK_EQUAL(patience.allowance().count(), 0);
    patience.graph_sent(2e9);
    CHECK_EQUAL(patience.allowance().count(), 2000);
    const double first = patience.sent();
    patience.graph_sent(1e9);
    CHECK_EQUAL(patience.allowance().count(), 3000);
    // 2e9 in 0.1 s, as the worker says: 20 GFLOP/s, of which an eighth is expected from now on.
    patience.done(first, true, 100'000);
    CHECK_EQUAL(patience.allowance().count(), 400);
    patience.done(patience.sent(), false, 0);
    CHECK_EQUAL(patience.allowance().count(), 0);
}

TEST(a_worker_that_became_slow_gets_more_time_at_once) {
    Patience patience;
    patience.graph_sent(2e9);
    patience.done(patience.sent(), true, 100'000);
    patience.graph_sent(2e9);
    patience.done(patience.sent(), true, 1'000'000);
    patience.graph_sent(1e9);
    CHECK_EQUAL(patience.allowance().count(), 4000);
}

TEST(weights_take_time_until_the_next_answer) {
    Patience patience;
    patience.weight_sent(50'000'000);
    patience.weight_sent(100'000'000);
    CHECK_EQUAL(patience.allowance().count(), 2000);  // the larger one; the other was read before
    patience.weight_reused(50'000'000);
    CHECK_EQUAL(patience.allowance().count(), 3000);
    patience.done(patience.sent(), true, 0);
    CHECK_EQUAL(patience.allowance().count(), 0);
}

TEST(no_wait_is_for_ever) {
    Patience patience;
    patience.graph_sent(1e30);
    CHECK(patience.allowance() <= std::chrono::minutes(30));
}
