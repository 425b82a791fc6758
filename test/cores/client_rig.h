#pragma once

// A small graph on a worker, and what a test asks of a process before and after.

#include <dirent.h>

#include <chrono>
#include <memory>
#include <thread>
#include <vector>

#include "check.h"
#include "fake_worker.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-cpp.h"
#include "ggml-impl.h"
#include "rpc/client/worker.h"

namespace droid::test {

using Clock = std::chrono::steady_clock;
using droid::rpc::Interrupt;
using droid::rpc::Worker;
using droid::rpc::WorkerAddress;
using droid::rpc::WorkerTimeouts;

// Failures that C code hears of are logged; here each is expected.
inline const bool quiet = (ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr), true);

// For a worker that does what it should, on however busy a machine.
inline WorkerTimeouts usual_timeouts() {
    WorkerTimeouts timeouts;
    timeouts.connect_ms = timeouts.handshake_ms = timeouts.answer_ms = 20000;
    return timeouts;
}

// For one that stays silent.
inline WorkerTimeouts short_timeouts() {
    WorkerTimeouts timeouts;
    timeouts.connect_ms = 300;
    timeouts.handshake_ms = 300;
    timeouts.answer_ms = 300;
    return timeouts;
}

inline int64_t ms_since(Clock::time_point start) {
    return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now() - start).count();
}

inline int entries(const char * directory) {
    int count = 0;
    DIR * dir = opendir(directory);
    while (dir && readdir(dir)) count++;
    if (dir) closedir(dir);
    return count;
}

// A thread that was joined may stay in /proc for a moment.
inline bool comes_back_to(int count, const char * directory) {
    const auto start = Clock::now();
    while (entries(directory) != count && ms_since(start) < 2000) std::this_thread::yield();
    return entries(directory) == count;
}

inline std::unique_ptr<Worker> connect(uint16_t port, const WorkerTimeouts & timeouts = usual_timeouts(),
                                       std::shared_ptr<Interrupt> interrupt = nullptr,
                                       std::function<void(const CodedError &)> on_lost = {}) {
    return std::make_unique<Worker>("127.0.0.1:" + std::to_string(port), WorkerAddress("127.0.0.1", port), timeouts,
                                    std::move(interrupt), std::move(on_lost));
}

// A worker whose connection is a pair of sockets, of which theirs is the other end's.
struct Pair {
    droid::rpc::OwnedSocket ours, theirs;
    Pair() {
        const auto [first, second] = droid::rpc::socket_pair();
        ours = droid::rpc::OwnedSocket(first);
        theirs = droid::rpc::OwnedSocket(second);
    }
    std::unique_ptr<Worker> connect(const WorkerTimeouts & timeouts = usual_timeouts(),
                                    std::shared_ptr<Interrupt> interrupt = nullptr,
                                    std::function<void(const CodedError &)> on_lost = {}) {
        return std::make_unique<Worker>("pair", WorkerAddress(std::move(ours)), timeouts, std::move(interrupt),
                                        std::move(on_lost));
    }
};

// out = a * a + b, all of n floats, on a backend.
struct Sum {
    ggml_backend_ptr backend;
    ggml_context_ptr context;
    ggml_backend_buffer_ptr buffer;
    ggml_tensor *a, *b, *out;
    ggml_cgraph * graph;

    Sum(ggml_backend_dev_t device, int64_t n = 64) : backend(ggml_backend_dev_init(device, nullptr)) {
        context.reset(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead(), nullptr, true}));
        a = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, n);
        b = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, n);
        out = ggml_add(context.get(), ggml_mul(context.get(), a, a), b);
        ggml_set_name(a, "a");
        graph = ggml_new_graph(context.get());
        ggml_build_forward_expand(graph, out);
        graph->uid = ggml_graph_next_uid();
        buffer.reset(ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_dev_buffer_type(device)));
    }

    std::vector<float> step(float x, float y) {
        const std::vector<float> as(static_cast<size_t>(a->ne[0]), x), bs(as.size(), y);
        ggml_backend_tensor_set(a, as.data(), 0, ggml_nbytes(a));
        ggml_backend_tensor_set(b, bs.data(), 0, ggml_nbytes(b));
        ggml_backend_graph_compute_async(backend.get(), graph);
        std::vector<float> result(as.size());
        ggml_backend_tensor_get(out, result.data(), 0, ggml_nbytes(out));
        return result;
    }
};

}  // namespace droid::test
