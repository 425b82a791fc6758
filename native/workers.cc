#include "workers.h"

#include <algorithm>
#include <thread>

namespace droid {

Workers::Workers(EngineOptions & options, std::shared_ptr<rpc::Interrupt> interrupt, const OnLost & on_lost)
    : options_(options) {
    std::vector<rpc::WorkerAddress> addresses;
    for (WorkerOptions & worker : options.workers) addresses.push_back(std::move(worker.address));
    for (size_t i = 0; i < options.workers.size(); i++) {
        const WorkerOptions & worker = options.workers[i];
        const bool has_head = options.head_on_worker && i + 1 == options.workers.size();
        workers_.push_back(nullptr);
        if (worker.layers == 0 && !has_head) continue;
        workers_.back() =
            std::make_unique<rpc::Worker>(worker.endpoint, std::move(addresses[i]), options.timeouts, interrupt,
                                          [on_lost, i](const CodedError & error) { on_lost(i, error); });
        if (options.half_activations) workers_.back()->use_half();
        devices_.push_back(workers_.back()->device());
        index_of_device_.push_back(i);
    }
}

void Workers::offer_weights(const std::function<bool(double fraction)> & on_progress) {
    if (std::none_of(workers_.begin(), workers_.end(),
                     [](const auto & worker) { return worker && worker->holds_weights(); })) {
        return;
    }
    // The last layers go to the workers, in their order, as params.cc places them.
    int32_t layers = 0;
    for (const ModelTensor & tensor : options_.tensors) layers = std::max(layers, tensor.layer + 1);
    uint32_t offloaded = 0;
    for (const auto & worker : options_.workers) offloaded += worker.layers;

    std::vector<rpc::TensorInFile> placed;
    std::vector<size_t> worker_of;
    for (const auto & [tensor, layer] : options_.tensors) {
        int64_t next = int64_t{layers} - offloaded;  // the first layer of the worker that is looked at
        for (size_t i = 0; i < workers_.size(); i++) {
            const int64_t first = next;
            next += options_.workers[i].layers;
            const bool head = options_.head_on_worker && i + 1 == workers_.size() && layer < 0;
            if ((layer < first || layer >= next || layer < 0) && !head) continue;
            if (!workers_[i] || !workers_[i]->holds_weights()) continue;
            placed.push_back(tensor);
            worker_of.push_back(i);
        }
    }
    const int threads = options_.threads ? static_cast<int>(options_.threads)
                                         : static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
    const rpc::Manifest all = rpc::make_manifest(placed, threads, [&](uint64_t done, uint64_t total) {
        return on_progress(total ? static_cast<double>(done) / static_cast<double>(total) : 1);
    });
    std::vector<rpc::Manifest> manifests(workers_.size());
    for (size_t t = 0; t < placed.size(); t++) {
        const auto entry = all.entries.find(placed[t].name);
        if (entry != all.entries.end()) manifests[worker_of[t]].entries.insert(*entry);
    }
    for (size_t i = 0; i < workers_.size(); i++) {
        if (!manifests[i].entries.empty()) workers_[i]->offer(manifests[i]);
    }
}

std::optional<Workers::Failure> Workers::failure() const {
    for (size_t i = 0; i < workers_.size(); i++) {
        if (!workers_[i]) continue;
        if (const auto error = workers_[i]->failure()) return Failure{i, *error};
    }
    return std::nullopt;
}

std::optional<CodedError> Workers::allocation_failure() const {
    for (const auto & worker : workers_) {
        if (!worker) continue;
        if (const auto error = worker->allocation_failure()) return error;
    }
    return std::nullopt;
}

const rpc::WorkerCounters * Workers::counters(size_t index) const {
    return workers_[index] ? &workers_[index]->counters() : nullptr;
}

}  // namespace droid
