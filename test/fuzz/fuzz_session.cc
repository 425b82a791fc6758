// The server's side of a connection. The input is all that masters send, HELLO included, byte for byte; script.h says
// how one input holds what two of them send, and restarts of the server. A server that is restarted has a cache on
// disk.
#include <stdlib.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <thread>

#include "rpc/server/session.h"
#include "script.h"

using namespace droid::rpc;
using droid::fuzz::Script;

namespace {

constexpr uint64_t memory_limit = 1 << 20;
constexpr uint64_t client_limit = memory_limit / 4 * 3;  // so that two can want too much together
constexpr uint64_t cache_limit = 64 << 10;

std::string cache_directory;

class ScriptStream : public Stream {
  public:
    ScriptStream(Script & script, int master) : script_(script), master_(master) {}

    bool read(void * data, size_t size) override { return script_.read(master_, data, size); }

    bool write(const iovec * pieces, int count) override {
        // Every byte of an answer is looked at, so that one that does not exist is noticed.
        for (int i = 0; i < count; i++) {
            const auto * bytes = static_cast<const volatile uint8_t *>(pieces[i].iov_base);
            for (size_t at = 0; at < pieces[i].iov_len; at++) sum_ += bytes[at];
        }
        return true;
    }

  private:
    Script & script_;
    const int master_;
    volatile uint8_t sum_ = 0;
};

void serve(Script & script, int master, const SessionShared & shared) {
    {
        ScriptStream stream(script, master);
        Session session(stream, shared, [](const std::string &) {});
        if (session.greet() && session.welcome(HelloStatus::ok)) session.serve();
    }
    script.leave(master);
}

void run_server(Script & script, bool cached) {
    ServerCounters counters;
    Budget budget(memory_limit);
    Compute compute(1, budget);
    std::optional<WeightCache> cache;
    if (cached) cache.emplace(cache_directory, cache_limit);
    WeightStore weights(budget, cache ? &*cache : nullptr, counters);
    const SessionShared shared = {compute, weights, budget, client_limit, counters};
    std::thread other;
    if (script.has(1)) {
        other = std::thread([&] { serve(script, 1, shared); });
    } else {
        script.leave(1);
    }
    serve(script, 0, shared);
    if (other.joinable()) other.join();
    // What clients had is all given back.
    if (budget.used() > memory_limit || counters.bytes_allocated != 0 || counters.bytes_weights != 0 ||
        counters.bytes_repacked != 0) {
        __builtin_trap();
    }
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    std::string name = (std::filesystem::temp_directory_path() / "droid-llama-fuzz-XXXXXX").string();
    if (!mkdtemp(name.data())) __builtin_trap();
    cache_directory = name;
    std::atexit([] { std::filesystem::remove_all(cache_directory); });
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    bool cached = false;
    do {
        size_t used = 0;
        Script script(data, size, used);
        const bool restarts = used < size;
        cached = cached || restarts;
        run_server(script, cached);
        data += used;
        size -= used;
    } while (size > 0);
    if (cached) std::filesystem::remove_all(std::filesystem::path(cache_directory) / "v1");
    return 0;
}
