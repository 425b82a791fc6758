#include <algorithm>

#include "client_rig.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

TEST(writes_and_reads_in_both_dialects) {
    for (const bool extended : {false, true}) {
        FakeWorker fake(extended);
        const auto worker = connect(fake.port);
        CHECK_EQUAL(worker->extended(), extended);
        size_t free, total;
        ggml_backend_dev_memory(worker->device(), &free, &total);
        CHECK_EQUAL(free, size_t{1} << 30);
        CHECK_EQUAL(total, size_t{2} << 30);
        Sum sum(worker->device());
        std::vector<float> in(64), out(64);
        for (size_t i = 0; i < in.size(); i++) in[i] = static_cast<float>(i);
        ggml_backend_tensor_set(sum.a, in.data(), 0, 256);
        ggml_backend_tensor_get(sum.a, out.data(), 0, 256);
        CHECK(in == out);
        ggml_backend_tensor_memset(sum.a, 0, 4, 8);
        ggml_backend_tensor_copy(sum.a, sum.b);
        ggml_backend_tensor_get(sum.b, out.data(), 0, 256);
        CHECK_EQUAL(out[2], 0.0f);
        CHECK_EQUAL(out[3], 3.0f);
        ggml_backend_buffer_clear(sum.buffer.get(), 0);
        ggml_backend_tensor_get(sum.a, out.data(), 128, 4);
        CHECK_EQUAL(out[0], 0.0f);
        CHECK(!worker->failure());
    }
}

TEST(asynchronous_reads_are_in_flight_together) {
    FakeWorker fake(true);
    const auto worker = connect(fake.port);
    Sum sum(worker->device());
    std::vector<float> in(64, 3.0f), a(64), b(64);
    ggml_backend_tensor_set(sum.a, in.data(), 0, 256);
    ggml_backend_tensor_set(sum.b, in.data(), 0, 256);
    const uint64_t writes = worker->counters().writes;
    ggml_backend_tensor_get_async(sum.backend.get(), sum.a, a.data(), 0, 256);
    ggml_backend_tensor_get_async(sum.backend.get(), sum.b, b.data(), 0, 256);
    CHECK_EQUAL(worker->counters().writes.load(), writes);
    ggml_backend_synchronize(sum.backend.get());
    CHECK_EQUAL(worker->counters().writes.load(), writes + 1);
    CHECK(a == in && b == in);
}

TEST(synchronize_does_not_wait_for_graphs) {
    FakeWorker fake(true, [](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
        if (command == Command::graph_compute) self.freeze();
        return false;
    });
    const auto worker = connect(fake.port);
    Sum sum(worker->device());
    ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
    const auto start = Clock::now();
    for (int i = 0; i < 10; i++) ggml_backend_synchronize(sum.backend.get());
    CHECK(ms_since(start) < 5000);
    CHECK(!worker->failure());
}

TEST(a_repeated_step_leaves_in_one_system_call) {
    for (const bool extended : {false, true}) {
        FakeWorker fake(extended);
        const auto worker = connect(fake.port);
        Sum sum(worker->device());
        sum.step(1, 2);
        sum.step(1, 2);  // the first one that may be predicted
        for (int i = 0; i < 5; i++) {
            const uint64_t writes = worker->counters().writes, sent = worker->counters().messages_sent;
            const uint64_t received = worker->counters().messages_received;
            sum.step(static_cast<float>(i), 2);
            CHECK_EQUAL(worker->counters().writes.load(), writes + 1);
            CHECK_EQUAL(worker->counters().messages_sent.load(), sent + (extended ? 3 : 4));  // two inputs
            CHECK_EQUAL(worker->counters().messages_received.load(), received + 1);
        }
        CHECK_EQUAL(worker->counters().graphs.load(), 7u);
        CHECK_EQUAL(worker->counters().compute_us.load(), extended ? 49u : 0u);
        const auto log = fake.log();
        CHECK_EQUAL(std::count(log.begin(), log.end(), Command::graph_compute), 1);
        CHECK_EQUAL(std::count(log.begin(), log.end(), Command::graph_recompute), 6);
    }
}

// A write between the graph and the read must show in what is read.
TEST(a_predicted_read_is_never_stale) {
    for (const bool extended : {false, true}) {
        FakeWorker fake(extended);
        const auto worker = connect(fake.port);
        Sum sum(worker->device());
        std::vector<float> result(64);
        const auto get = [&](ggml_tensor * tensor) {
            ggml_backend_tensor_get(tensor, result.data(), 0, 256);
            return result[0];
        };
        const auto set = [&](ggml_tensor * tensor, float value) {
            const std::vector<float> data(64, value);
            ggml_backend_tensor_set(tensor, data.data(), 0, 256);
        };
        const auto compute = [&] { ggml_backend_graph_compute_async(sum.backend.get(), sum.graph); };
        set(sum.a, 1);
        set(sum.b, 10);
        compute();
        CHECK_EQUAL(get(sum.a), 1.0f);
        compute();  // predicts a
        set(sum.a, 2);
        CHECK_EQUAL(get(sum.a), 2.0f);
        compute();
        CHECK_EQUAL(get(sum.a), 2.0f);
        compute();                       // predicts a
        compute();                       // and again
        CHECK_EQUAL(get(sum.b), 10.0f);  // another one
        CHECK_EQUAL(get(sum.a), 2.0f);
        compute();  // predicts b and a
        ggml_backend_tensor_memset(sum.a, 0, 0, 256);
        CHECK_EQUAL(get(sum.a), 0.0f);
        compute();
        CHECK_EQUAL(get(sum.a), 0.0f);
        compute();  // predicts a
        std::vector<float> part(2, 5.0f);
        ggml_backend_tensor_get_async(sum.backend.get(), sum.a, part.data(), 0, 8);  // not all of it
        CHECK_EQUAL(get(sum.a), 0.0f);
        ggml_backend_synchronize(sum.backend.get());
        CHECK_EQUAL(part[1], 0.0f);
        CHECK(!worker->failure());
    }
}

TEST(a_graph_is_sent_anew_after_a_buffer_was_freed) {
    FakeWorker fake(true);
    const auto worker = connect(fake.port);
    Sum sum(worker->device());
    sum.step(1, 2);
    { Sum other(worker->device()); }
    sum.step(1, 2);
    const auto log = fake.log();
    CHECK_EQUAL(std::count(log.begin(), log.end(), Command::graph_compute), 2);
}

TEST(answers_are_taken_while_sending_waits) {
    // The worker sends each answer to its end before it reads on, and both directions are far larger than what the
    // kernel holds.
    FakeWorker fake(true);
    const auto worker = connect(fake.port);
    const int64_t n = 8 << 20;
    Sum sum(worker->device(), n);
    std::vector<float> in(static_cast<size_t>(n), 3.0f), out(in.size()), again(in.size());
    ggml_backend_tensor_set(sum.a, in.data(), 0, ggml_nbytes(sum.a));
    ggml_backend_tensor_get_async(sum.backend.get(), sum.a, out.data(), 0, ggml_nbytes(sum.a));
    ggml_backend_tensor_get_async(sum.backend.get(), sum.a, again.data(), 0, ggml_nbytes(sum.a));
    ggml_backend_tensor_set(sum.b, in.data(), 0, ggml_nbytes(sum.b));
    ggml_backend_tensor_set(sum.a, in.data(), 0, ggml_nbytes(sum.b));
    ggml_backend_synchronize(sum.backend.get());
    CHECK(out == in && again == in);
}

TEST(weights_are_offered_and_named_instead_of_sent) {
    FakeWorker fake(true);
    const auto worker = connect(fake.port);
    Sum sum(worker->device());
    ggml_backend_buffer_set_usage(sum.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    Manifest manifest;
    manifest.entries["a"] = {Sha256{1}, 256};
    manifest.entries["leaf_1"] = {Sha256{2}, 256};
    worker->offer(manifest);
    std::vector<float> data(64, 1.5f), out(64);
    ggml_backend_tensor_set(sum.a, data.data(), 0, 256);
    ggml_backend_tensor_set(sum.b, data.data(), 0, 256);
    ggml_backend_tensor_get(sum.b, out.data(), 0, 256);
    CHECK(out == data);
    CHECK_EQUAL(worker->counters().weights_reused.load(), 256u);
    CHECK_EQUAL(worker->counters().weights_sent.load(), 256u);
    ggml_backend_tensor_get(sum.a, out.data(), 0, 4);
    CHECK_EQUAL(std::string(reinterpret_cast<char *>(out.data()), 4), std::string("wwww"));
    const auto log = fake.log();
    CHECK_EQUAL(std::count(log.begin(), log.end(), Command::use_weight), 1);
    CHECK_EQUAL(std::count(log.begin(), log.end(), Command::put_weight), 1);
}

TEST(an_offer_waits_for_its_answer_only_when_something_else_is_asked) {
    std::atomic<bool> offered{false}, looked_before{false};
    FakeWorker fake(true, [&](FakeWorker &, Command command, const FakeWorker::Bytes &, int) {
        if (command != Command::offer) return false;
        const auto start = Clock::now();
        while (!offered && ms_since(start) < 5000) std::this_thread::yield();
        looked_before = offered.load();
        return false;
    });
    const auto worker = connect(fake.port);
    Manifest manifest;
    manifest.entries["leaf_1"] = {Sha256{2}, 256};
    manifest.entries["a"] = {Sha256{1}, 256};
    // The handshake waits once, or twice when its answers come apart.
    const uint64_t waits = worker->counters().waits;
    worker->offer(manifest);
    CHECK_EQUAL(worker->counters().waits.load(), waits);
    offered = true;
    Sum sum(worker->device());
    CHECK(looked_before);
    ggml_backend_buffer_set_usage(sum.buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const std::vector<float> data(64, 1.5f);
    ggml_backend_tensor_set(sum.a, data.data(), 0, 256);
    ggml_backend_tensor_set(sum.b, data.data(), 0, 256);
    CHECK_EQUAL(worker->counters().weights_reused.load(), 256u);
    CHECK_EQUAL(worker->counters().weights_sent.load(), 256u);
}

TEST(a_stream_that_is_freed_gets_no_data) {
    FakeWorker fake(true);
    const auto worker = connect(fake.port);
    Sum sum(worker->device(), 4096);
    std::vector<float> kept(4096);
    {
        std::vector<float> gone(4096);
        const ggml_backend_ptr stream(ggml_backend_dev_init(worker->device(), nullptr));
        ggml_backend_tensor_get_async(stream.get(), sum.a, gone.data(), 0, ggml_nbytes(sum.a));
    }
    ggml_backend_tensor_get(sum.a, kept.data(), 0, ggml_nbytes(sum.a));
    CHECK(!worker->failure());
}

TEST(devices_have_names_of_their_own_and_take_their_own_buffers) {
    FakeWorker one(true), two(true);
    const auto first = connect(one.port), second = connect(two.port);
    CHECK(std::string(ggml_backend_dev_name(first->device())) != ggml_backend_dev_name(second->device()));
    const auto type = ggml_backend_dev_buffer_type(first->device());
    CHECK(ggml_backend_dev_supports_buft(first->device(), type));
    CHECK(!ggml_backend_dev_supports_buft(second->device(), type));
    CHECK(!ggml_backend_dev_supports_buft(first->device(), ggml_backend_cpu_buffer_type()));
    Sum a(first->device()), b(second->device());
    std::vector<float> in(64, 7.0f), out(64);
    ggml_backend_tensor_set(a.a, in.data(), 0, 256);
    ggml_backend_tensor_copy(a.a, b.a);
    ggml_backend_tensor_get(b.a, out.data(), 0, 256);
    CHECK(in == out);
}
