// Against upstream's ggml-rpc-server, whose path DROID_RPC_SERVER names.

#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>

#include <cmath>
#include <cstdlib>

#include "layer.h"

extern char ** environ;

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

namespace {

const char * server_path() {
    const char * path = std::getenv("DROID_RPC_SERVER");
    if (!path || access(path, X_OK) != 0) {
        std::printf("skipped: DROID_RPC_SERVER does not name an ggml-rpc-server\n");
        return nullptr;
    }
    return path;
}

class UpstreamServer {
  public:
    explicit UpstreamServer(const char * path) {
        const auto [listener, free_port] = listen_tcp("127.0.0.1", 0);
        close_socket(listener);
        port = free_port;
        const std::string text = std::to_string(port);
        const char * const args[] = {path, "-H", "127.0.0.1", "-p", text.c_str(), nullptr};
        posix_spawn_file_actions_t actions;
        posix_spawn_file_actions_init(&actions);
        posix_spawn_file_actions_addopen(&actions, 1, "/dev/null", O_WRONLY, 0);
        posix_spawn_file_actions_addopen(&actions, 2, "/dev/null", O_WRONLY, 0);
        CHECK(posix_spawn(&pid_, path, &actions, nullptr, const_cast<char * const *>(args), environ) == 0);
        posix_spawn_file_actions_destroy(&actions);
        const auto start = Clock::now();
        for (;;) {
            try {
                close_socket(connect_tcp("upstream", "127.0.0.1", port, 1000));
                return;
            } catch (const CodedError &) {
                if (ms_since(start) > 20000) throw;
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
            }
        }
    }
    ~UpstreamServer() {
        kill(SIGKILL);
        waitpid(pid_, nullptr, 0);
    }
    void kill(int signal) { ::kill(pid_, signal); }

    uint16_t port;

  private:
    pid_t pid_ = -1;
};

}  // namespace

TEST(upstream_computes_what_the_cpu_does) {
    const char * path = server_path();
    if (!path) return;
    UpstreamServer server(path);
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q4_0}) {
        const auto worker = connect(server.port);
        CHECK(!worker->extended());
        Layer remote(worker->device(), type), local(cpu_device(), type);
        remote.load();
        local.load();
        for (unsigned step = 1; step < 6; step++) {
            const std::vector<float> a = remote.run(step), b = local.run(step);
            for (size_t i = 0; i < a.size(); i++) CHECK(std::fabs(a[i] - b[i]) < 1e-4f);
        }
        CHECK_EQUAL(worker->counters().graphs.load(), 5u);
        CHECK(!worker->failure());
    }
}

TEST(upstream_copies_clears_and_fills) {
    const char * path = server_path();
    if (!path) return;
    UpstreamServer server(path);
    const auto worker = connect(server.port);
    Sum sum(worker->device());
    check_copies_clears_and_fills(sum);
    for (int i = 0; i < 20; i++) {
        const std::vector<float> result = sum.step(static_cast<float>(i), 3);
        CHECK_EQUAL(result[63], static_cast<float>(i * i + 3));
    }
}

TEST(upstream_keeps_large_weights_by_hash) {
    const char * path = server_path();
    if (!path) return;
    UpstreamServer server(path);
    const auto worker = connect(server.port);
    const ggml_context_ptr context(ggml_init({4096, nullptr, true}));
    ggml_tensor * tensor = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 3 << 20);
    const ggml_backend_buffer_ptr buffer(
        ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_dev_buffer_type(worker->device())));
    ggml_backend_buffer_set_usage(buffer.get(), GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    const std::vector<float> in = random_floats(3 << 20, 1);
    std::vector<float> out(in.size());
    ggml_backend_tensor_set(tensor, in.data(), 0, ggml_nbytes(tensor));
    ggml_backend_tensor_get(tensor, out.data(), 0, ggml_nbytes(tensor));
    CHECK(in == out);
    CHECK_EQUAL(worker->counters().weights_sent.load(), ggml_nbytes(tensor));
}

TEST(upstream_that_is_killed_or_stopped) {
    const char * path = server_path();
    if (!path) return;
    for (const int signal : {SIGKILL, SIGSTOP}) {
        UpstreamServer server(path);
        WorkerTimeouts timeouts = usual_timeouts();
        timeouts.answer_ms = 1000;
        const auto worker = connect(server.port, timeouts);
        Sum sum(worker->device());
        sum.step(1, 2);
        server.kill(signal);
        const auto start = Clock::now();
        std::string code = "none";
        try {
            sum.step(1, 2);
        } catch (const CodedError & error) {
            code = error.code();
        }
        CHECK_EQUAL(code, std::string("DROID_WORKER_LOST"));
        CHECK(ms_since(start) < 5000);
    }
}
