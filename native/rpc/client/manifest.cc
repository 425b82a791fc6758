#include "rpc/client/manifest.h"

#include <fcntl.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <map>
#include <mutex>
#include <numeric>
#include <optional>
#include <thread>

#include "rpc/file.h"

namespace droid::rpc {

namespace {

constexpr size_t io_block = 1 << 20;

// What the threads share. Tensors are taken from the largest on, so that none is left alone with a large one.
struct Work {
    Work(const std::vector<TensorInFile> & tensors,
         const std::function<bool(uint64_t done, uint64_t total)> & on_progress)
        : tensors(tensors), on_progress(on_progress) {}

    const std::vector<TensorInFile> & tensors;
    const std::function<bool(uint64_t done, uint64_t total)> & on_progress;
    std::map<std::string, File> files;
    std::vector<size_t> order;
    uint64_t total = 0;

    std::atomic<size_t> next{0};
    std::atomic<uint64_t> done{0};
    std::atomic<bool> stopped{false};
    std::mutex mutex;  // for the two below
    Manifest manifest;
    std::exception_ptr failure;

    // False to stop.
    bool progress(uint64_t bytes) {
        const uint64_t now = done += bytes;
        if (on_progress && !on_progress(now, total)) stopped = true;
        return !stopped;
    }

    std::optional<Sha256> hash(const TensorInFile & tensor, std::vector<uint8_t> & block) {
        const File & file = files.at(tensor.path);
        Sha256Hasher hasher;
        for (uint64_t at = 0; at < tensor.size;) {
            const size_t part = size_t(std::min<uint64_t>(block.size(), tensor.size - at));
            // Read, not mapped: a file that shrinks under a mapping ends the process (SIGBUS).
            const bool within = tensor.size <= INT64_MAX && tensor.offset <= INT64_MAX - tensor.size;
            if (!within || read_at(file, block.data(), part, tensor.offset + at) != ssize_t(part)) {
                progress(tensor.size - at);
                return std::nullopt;
            }
            hasher.update(block.data(), part);
            at += part;
            if (!progress(part)) return std::nullopt;
        }
        return hasher.finish();
    }

    void run() {
        try {
            std::vector<uint8_t> block(io_block);
            for (size_t i = next++; i < order.size() && !stopped; i = next++) {
                const TensorInFile & tensor = tensors[order[i]];
                const std::optional<Sha256> sum = hash(tensor, block);
                if (!sum) continue;
                const std::lock_guard<std::mutex> lock(mutex);
                manifest.entries[tensor.name] = {*sum, tensor.size};
            }
        } catch (...) {
            stopped = true;
            const std::lock_guard<std::mutex> lock(mutex);
            if (!failure) failure = std::current_exception();
        }
    }
};

}  // namespace

Manifest make_manifest(const std::vector<TensorInFile> & tensors, int threads,
                       const std::function<bool(uint64_t done, uint64_t total)> & on_progress) {
    Work work(tensors, on_progress);
    for (const TensorInFile & tensor : tensors) {
        work.total += tensor.size;
        if (!work.files.count(tensor.path)) {
            work.files[tensor.path] = File(open(tensor.path.c_str(), O_RDONLY | O_CLOEXEC));
        }
    }
    work.order.resize(tensors.size());
    std::iota(work.order.begin(), work.order.end(), size_t(0));
    std::stable_sort(work.order.begin(), work.order.end(),
                     [&](size_t a, size_t b) { return tensors[a].size > tensors[b].size; });

    std::vector<std::thread> helpers;
    const size_t wanted = std::min(tensors.size(), size_t(std::max(threads, 1)));
    try {
        while (helpers.size() + 1 < wanted) helpers.emplace_back([&work] { work.run(); });
    } catch (const std::exception &) {
        // Too many threads in this process: those that there are do all of it.
    }
    work.run();
    for (std::thread & helper : helpers) helper.join();
    if (work.failure) std::rethrow_exception(work.failure);
    return std::move(work.manifest);
}

}  // namespace droid::rpc
