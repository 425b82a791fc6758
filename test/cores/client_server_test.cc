// Both ends of this package, in one process.

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <thread>

#include "layer.h"
#include "test_server.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

namespace {

struct TemporaryDirectory {
    std::string path;
    TemporaryDirectory() {
        char name[] = "/tmp/client-server-XXXXXX";
        CHECK(mkdtemp(name));
        path = name;
    }
    ~TemporaryDirectory() { std::filesystem::remove_all(path); }
};

// Where the CPU would have the weights of such a layer: null for its ordinary memory.
ggml_backend_buffer_type_t cpu_weight_buffers(ggml_type type) {
    using ExtraBuffers = ggml_backend_buffer_type_t * (*)(ggml_backend_dev_t);
    const auto extra = reinterpret_cast<ExtraBuffers>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    for (auto buffers = extra ? extra(cpu_device()) : nullptr; buffers && *buffers; buffers++) {
        const ggml_context_ptr context(ggml_init({16 * ggml_tensor_overhead(), nullptr, true}));
        ggml_tensor * weight = ggml_new_tensor_2d(context.get(), type, Layer::n, Layer::n);
        ggml_tensor * x = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, Layer::n, Layer::tokens);
        const ggml_backend_buffer_ptr empty(ggml_backend_buft_alloc_buffer(*buffers, 0));
        weight->buffer = empty.get();
        if (ggml_backend_dev_supports_op(cpu_device(), ggml_mul_mat(context.get(), weight, x))) return *buffers;
    }
    return nullptr;
}

// The error that an action ends in; its text says what part does.
CodedError error_of(const std::function<void()> & action, const std::string & part) {
    try {
        action();
    } catch (const CodedError & error) {
        if (std::string(error.what()).find(part) != std::string::npos) return error;
        throw Failure(std::string("\"") + error.what() + "\" does not say \"" + part + "\"");
    }
    throw Failure("no error that says \"" + part + "\"");
}

// The open sockets that tell() says a port of.
std::vector<int> sockets_with(int (*tell)(int, sockaddr *, socklen_t *), uint16_t port) {
    std::vector<int> found;
    for (int fd = 3; fd < 1024; fd++) {
        sockaddr_in address = {};
        socklen_t size = sizeof address;
        int listening = 0;
        socklen_t length = sizeof listening;
        if (tell(fd, reinterpret_cast<sockaddr *>(&address), &size) != 0 || ntohs(address.sin_port) != port) continue;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) == 0 && !listening) found.push_back(fd);
    }
    return found;
}

int socket_option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    CHECK(getsockopt(fd, level, name, &value, &size) == 0);
    return value;
}

}  // namespace

TEST(both_ends_compute_what_the_cpu_does) {
    TestServer server(small());
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        const auto worker = connect(server.server.port());
        CHECK(worker->extended());
        // With the memory that the CPU likes best for such weights: the same kernels, so the same bits.
        const ggml_backend_buffer_type_t buffers = cpu_weight_buffers(type);
        Layer remote(worker->device(), type), local(cpu_device(), type, buffers);
        remote.load();
        local.load();
        for (unsigned step = 1; step < 6; step++) CHECK(remote.run(step) == local.run(step));
        CHECK_EQUAL(worker->counters().graphs.load(), 5u);
        CHECK_EQUAL(server.server.counters().bytes_repacked.load(), buffers ? remote.weight_bytes() : 0u);
        CHECK(worker->counters().compute_us > 0);
        CHECK(!worker->failure());
    }
    CHECK_EQUAL(server.server.counters().graphs_computed.load(), 20u);
}

TEST(both_ends_copy_clear_and_fill) {
    TestServer server(small());
    const auto worker = connect(server.server.port());
    Sum sum(worker->device());
    check_copies_clears_and_fills(sum);
    CHECK(!worker->failure());
}

TEST(a_step_is_one_write_and_one_wait) {
    TestServer server(small());
    const auto worker = connect(server.server.port());
    const WorkerCounters & counters = worker->counters();
    Sum sum(worker->device());
    // The first one sends the graph; from the second on the worker is asked for what was read before.
    for (int i = 0; i < 2; i++) sum.step(float(i), 3);
    for (int i = 2; i < 20; i++) {
        const uint64_t writes = counters.writes, messages = counters.messages_sent, waits = counters.waits;
        const uint64_t bytes = counters.bytes_sent;
        CHECK_EQUAL(sum.step(float(i), 3)[63], float(i * i + 3));
        CHECK_EQUAL(counters.writes - writes, 1u);
        CHECK_EQUAL(counters.messages_sent - messages, 3u);  // its inputs, the graph by its name, a read
        CHECK(counters.waits - waits <= 1);
        CHECK(counters.bytes_sent - bytes < 2 * 256 + 128);
    }
    CHECK_EQUAL(server.server.counters().graphs_computed.load(), 20u);
}

TEST(weights_are_sent_once_for_all_masters) {
    TestServer server(small());
    const ServerCounters & counters = server.server.counters();
    const auto first = connect(server.server.port());
    Layer one(first->device(), GGML_TYPE_F16);
    first->offer(one.manifest());
    one.load();
    const std::vector<float> expected = one.run(1);
    CHECK_EQUAL(first->counters().weights_sent.load(), one.weight_bytes());
    CHECK_EQUAL(first->counters().weights_reused.load(), 0u);
    {
        const auto second = connect(server.server.port());
        Layer other(second->device(), GGML_TYPE_F16);
        second->offer(other.manifest());
        other.load();
        CHECK(other.run(1) == expected);
        CHECK_EQUAL(second->counters().weights_sent.load(), 0u);
        CHECK_EQUAL(second->counters().weights_reused.load(), other.weight_bytes());
        CHECK_EQUAL(counters.bytes_weights.load(), one.weight_bytes());
        CHECK_EQUAL(counters.bytes_weights_received.load(), one.weight_bytes());
        CHECK_EQUAL(counters.bytes_weights_reused.load(), one.weight_bytes());

        // What one of them writes over is not the other's.
        const std::vector<uint8_t> zeros(Layer::n * sizeof(ggml_fp16_t));
        ggml_backend_tensor_set(other.w1, zeros.data(), 0, zeros.size());
        CHECK(other.run(1) != expected);
        CHECK(one.run(1) == expected);
    }
    CHECK(eventually([&] { return counters.clients == 1u; }));
    CHECK(one.run(1) == expected);
    CHECK_EQUAL(counters.bytes_weights.load(), one.weight_bytes());
}

TEST(weights_go_with_the_last_master_when_there_is_no_cache) {
    TestServer server(small());
    for (int i = 0; i < 2; i++) {
        const auto worker = connect(server.server.port());
        Layer layer(worker->device(), GGML_TYPE_Q4_0);
        worker->offer(layer.manifest());
        layer.load();
        layer.run(1);
        CHECK_EQUAL(worker->counters().weights_sent.load(), layer.weight_bytes());
        layer.weights.reset();
        layer.rest.reset();
        // The graph that used them was the last to hold them.
        CHECK(eventually([&] { return server.server.counters().bytes_weights == 0u; }));
    }
    CHECK_EQUAL(server.server.counters().bytes_weights_reused.load(), 0u);
}

TEST(weights_are_found_on_disk_by_another_server) {
    const TemporaryDirectory directory;
    ServerOptions options = small();
    options.cache_dir = directory.path;
    std::vector<float> expected;
    for (const bool known : {false, true}) {
        TestServer server(options);
        const auto worker = connect(server.server.port());
        Layer layer(worker->device(), GGML_TYPE_Q4_0);
        worker->offer(layer.manifest());
        layer.load();
        const std::vector<float> result = layer.run(1);
        if (!known) expected = result;
        CHECK(result == expected);
        CHECK_EQUAL(worker->counters().weights_sent.load(), known ? 0u : layer.weight_bytes());
        CHECK_EQUAL(worker->counters().weights_reused.load(), known ? layer.weight_bytes() : 0u);
        CHECK_EQUAL(server.server.counters().bytes_weights_received.load(), known ? 0u : layer.weight_bytes());
    }
    // Other data under the same names is sent.
    TestServer server(options);
    const auto worker = connect(server.server.port());
    Layer layer(worker->device(), GGML_TYPE_Q4_0);
    worker->offer(layer.manifest(2));
    layer.load(2);
    CHECK(layer.run(1) != expected);
    // The second matrix of the first seed is the first of the second.
    CHECK_EQUAL(worker->counters().weights_sent.load(), ggml_nbytes(layer.w2));
    CHECK_EQUAL(worker->counters().weights_reused.load(), ggml_nbytes(layer.w1));
}

TEST(a_refusal_arrives_with_its_reason) {
    TestServer server(small());
    const auto worker = connect(server.server.port()), other = connect(server.server.port());
    Sum sum(worker->device()), unharmed(other->device());
    // A graph that asks for something that no worker does.
    sum.out->op = GGML_OP_SUM_ROWS;
    const CodedError error = error_of([&] { sum.step(1, 2); }, "SUM_ROWS");
    CHECK_EQUAL(error.code(), "DROID_WORKER_REFUSED");
    CHECK_EQUAL(worker->failure()->code(), "DROID_WORKER_REFUSED");
    CHECK(server.said("dropped"));
    CHECK_EQUAL(unharmed.step(3, 1)[0], 10.0f);
    CHECK_EQUAL(server.server.counters().clients_dropped.load(), 1u);
}

TEST(too_little_memory_arrives_as_such) {
    ServerOptions options = small();
    options.memory_limit = 1 << 20;
    TestServer server(options);
    const auto worker = connect(server.server.port());
    // An allocation that fails is an answer, and the connection goes on.
    CHECK(!Sum(worker->device(), 1 << 20).buffer);
    CHECK(!worker->failure());
    CHECK_EQUAL(worker->allocation_failure()->code(), "DROID_WORKER_OUT_OF_MEMORY");

    // A graph cannot be answered that way.
    const size_t all = (1 << 20) - 256;
    const ggml_backend_buffer_type_t buffers = ggml_backend_dev_buffer_type(worker->device());
    Sum sum(worker->device());
    std::vector<ggml_backend_buffer_ptr> rest;
    for (size_t size = all; size >= 256; size /= 2) {
        while (ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(buffers, size)) rest.emplace_back(buffer);
    }
    const CodedError error = error_of([&] { sum.step(1, 2); }, "no memory left for a graph");
    CHECK_EQUAL(error.code(), "DROID_WORKER_OUT_OF_MEMORY");
}

TEST(a_worker_that_stops_says_so_and_may_come_back) {
    std::atomic<int> told{0};
    auto server = std::make_unique<TestServer>(small());
    const uint16_t port = server->server.port();
    const auto worker = connect(port, usual_timeouts(), nullptr,
                                [&](const CodedError & error) { told += error.code() == "DROID_WORKER_LOST"; });
    Sum sum(worker->device());
    sum.step(1, 2);
    server->server.stop();
    // Also to a master that asks for nothing.
    CHECK(eventually([&] { return worker->failure().has_value(); }));
    const CodedError error = error_of([&] { sum.step(1, 2); }, "shutting down");
    CHECK_EQUAL(error.code(), "DROID_WORKER_LOST");
    CHECK_EQUAL(told.load(), 1);

    server.reset();
    ServerOptions options = small();
    options.port = port;
    TestServer again(options);
    const auto successor = connect(port);
    Sum anew(successor->device());
    CHECK_EQUAL(anew.step(3, 1)[0], 10.0f);
}

TEST(a_worker_that_computes_stops_after_the_node_it_is_at) {
    TestServer server(small());
    const auto worker = connect(server.server.port());
    const ggml_backend_ptr backend(ggml_backend_dev_init(worker->device(), nullptr));
    const ggml_context_ptr context(ggml_init({300 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
    ggml_tensor * const matrix = ggml_new_tensor_2d(context.get(), GGML_TYPE_F32, 256, 256);
    ggml_tensor * last = matrix;
    for (int i = 0; i < 200; i++) last = ggml_mul_mat(context.get(), matrix, last);
    ggml_cgraph * graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, last);
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_dev_buffer_type(worker->device())));
    CHECK(buffer);
    ggml_backend_buffer_clear(buffer.get(), 0);
    float value = 1;
    const auto run = [&] {
        ggml_backend_graph_compute_async(backend.get(), graph);
        ggml_backend_tensor_get(last, &value, 0, sizeof value);
    };
    run();
    CHECK_EQUAL(value, 0.0f);
    const auto whole = std::chrono::microseconds(server.server.counters().compute_us);
    std::thread stopper;
    const auto start = Clock::now();
    std::chrono::microseconds took{0};
    stopper = std::thread([&] {
        std::this_thread::sleep_for(whole / 10);
        server.server.stop();
        took = std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - start);
    });
    const CodedError error = error_of(run, "shutting down");
    stopper.join();
    CHECK_EQUAL(error.code(), "DROID_WORKER_LOST");
    CHECK(took < whole / 2);
    CHECK_EQUAL(server.server.counters().graphs_computed.load(), 1u);
}

TEST(a_master_too_many_is_told_at_once) {
    ServerOptions options = small();
    options.max_clients = 1;
    TestServer server(options);
    auto first = connect(server.server.port());
    const CodedError error = error_of([&] { connect(server.server.port()); }, "as many masters as it takes");
    CHECK_EQUAL(error.code(), "DROID_WORKER_BUSY");
    CHECK(eventually([&] { return server.server.counters().clients_refused == 1u; }));
    first.reset();
    CHECK(!connect(server.server.port())->failure());
}

TEST(a_silent_peer_is_noticed_by_both_kernels) {
    TestServer server(small());
    WorkerTimeouts timeouts = usual_timeouts();
    timeouts.keepalive_idle_ms = 7000;
    timeouts.keepalive_interval_ms = 3000;
    timeouts.user_timeout_ms = 21000;
    const auto worker = connect(server.server.port(), timeouts);
    const std::vector<int> ours = sockets_with(getpeername, server.server.port());
    const std::vector<int> theirs = sockets_with(getsockname, server.server.port());
    CHECK_EQUAL(ours.size(), 1u);
    CHECK_EQUAL(theirs.size(), 1u);
    for (const int fd : {ours[0], theirs[0]}) {
        CHECK(socket_option(fd, SOL_SOCKET, SO_KEEPALIVE));
        CHECK(socket_option(fd, IPPROTO_TCP, TCP_NODELAY));
    }
#if defined(TCP_KEEPIDLE) && defined(TCP_KEEPINTVL)
    CHECK_EQUAL(socket_option(ours[0], IPPROTO_TCP, TCP_KEEPIDLE), 7);
    CHECK_EQUAL(socket_option(ours[0], IPPROTO_TCP, TCP_KEEPINTVL), 3);
    // A master that is gone keeps its memory for a minute at most.
    CHECK(socket_option(theirs[0], IPPROTO_TCP, TCP_KEEPIDLE) +
              socket_option(theirs[0], IPPROTO_TCP, TCP_KEEPINTVL) *
                  socket_option(theirs[0], IPPROTO_TCP, TCP_KEEPCNT) <=
          60);
#endif
#ifdef TCP_USER_TIMEOUT
    CHECK_EQUAL(socket_option(ours[0], IPPROTO_TCP, TCP_USER_TIMEOUT), 21000);
#endif
}
