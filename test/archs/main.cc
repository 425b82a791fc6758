// Every architecture of llama.cpp on a worker: random models of upstream's test, whose logits must be the CPU's.
//
//   archs --list            their names
//   archs <name>...         upstream's table for each, with all layers on the worker and with the last one
//   archs --log <name>...   also what llama.cpp logs; with GGML_SCHED_DEBUG=2 where it computes each node
//
// Ends with 1 when a row is wrong or the worker was lost.
#include <cstdio>
#include <cstring>
#include <set>
#include <string>
#include <thread>

#include "ggml-backend-impl.h"
#include "log.h"
#include "rpc/client/worker.h"
#include "rpc/server/server.h"
#include "upstream.h"

namespace {

using namespace droid;

constexpr unsigned seed = 1234;
bool verbose = false;

// What the worker's device said no to; llama.cpp computes it elsewhere.
std::set<std::string> refused;
bool (*supports_op)(ggml_backend_dev_t device, const ggml_tensor * op);

bool noting_supports_op(ggml_backend_dev_t device, const ggml_tensor * op) {
    const bool supported = supports_op(device, op);
    if (!supported) {
        std::string text = ggml_op_desc(op);
        for (const ggml_tensor * source : op->src) {
            if (source) text += std::string(" ") + ggml_type_name(source->type);
        }
        refused.insert(text);
    }
    return supported;
}

// Of each context that was made, in their order.
std::string splits;

void read_log(ggml_log_level level, const char * text, void *) {
    if (verbose || level == GGML_LOG_LEVEL_ERROR) std::fputs(text, stderr);
    int count = 0;
    const char * found = std::strstr(text, "splits = ");
    if (found && std::sscanf(found, "splits = %d", &count) == 1) splits += " " + std::to_string(count);
}

bool run(const std::string & name, uint16_t port, int layers) {
    rpc::Worker worker("127.0.0.1:" + std::to_string(port), {"127.0.0.1", port}, {}, nullptr);
    refused.clear();
    splits.clear();
    supports_op = worker.device()->iface.supports_op;
    worker.device()->iface.supports_op = noting_supports_op;
    archs::set_device(worker.device(), layers);
    // Each time: a run that ends in an exception leaves its own.
    llama_log_set(read_log, nullptr);
    std::printf("%s: %s\n", name.c_str(), layers < 0 ? "all layers" : "the last layer");
    std::fflush(stdout);
    bool passed = archs::run(name, seed) == 0;
    common_log_flush(common_log_main());
    if (const auto failure = worker.failure()) {
        std::printf("%s: the worker was lost: %s\n", name.c_str(), failure->what());
        passed = false;
    }
    for (const std::string & op : refused) std::printf("%s: not for the worker: %s\n", name.c_str(), op.c_str());
    const rpc::WorkerCounters & counters = worker.counters();
    std::printf("%s: %llu graphs, %llu bytes sent, splits%s\n", name.c_str(),
                static_cast<unsigned long long>(counters.graphs), static_cast<unsigned long long>(counters.bytes_sent),
                splits.c_str());
    std::fflush(stdout);
    return passed;
}

}  // namespace

int main(int argc, char ** argv) {
    if (argc == 2 && std::strcmp(argv[1], "--list") == 0) {
        for (const std::string & name : archs::names()) std::puts(name.c_str());
        return 0;
    }
    rpc::ServerOptions options;
    options.host = "127.0.0.1";
    options.threads = static_cast<int>(std::thread::hardware_concurrency());
    rpc::Server server(options);
    bool passed = true;
    for (int i = 1; i < argc; i++) {
        if (std::strcmp(argv[i], "--log") == 0) {
            verbose = true;
            continue;
        }
        for (const int layers : {-1, 2}) {
            passed = run(argv[i], server.port(), layers) && passed;
        }
    }
    return passed ? 0 : 1;
}
