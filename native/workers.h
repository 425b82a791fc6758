#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "options.h"
#include "rpc/client/worker.h"

namespace droid {

// ggml's scheduler aborts above 16 backends (GGML_SCHED_MAX_BACKENDS), and one is the master's CPU.
constexpr size_t max_workers = 15;

// The workers of one engine. Models and contexts on them are freed before it; used by the engine's thread, except where
// it says otherwise.
class Workers {
  public:
    using OnLost = std::function<void(size_t index, const CodedError & error)>;

    // Connects to each of options.workers that has a part of the model, and takes the addresses of all of them: no
    // socket stays open that no worker uses, also when this throws. on_lost comes from any thread, with the index in
    // options.workers. Throws what rpc::Worker throws; DROID_INVALID_ARGUMENT for a worker that cannot do what
    // options.half_activations asks for.
    Workers(EngineOptions & options, std::shared_ptr<rpc::Interrupt> interrupt, const OnLost & on_lost);

    // One for each connected worker, in the order of options.workers.
    const std::vector<ggml_backend_dev_t> & devices() const { return devices_; }
    // The index in options.workers of devices()[i].
    size_t index_of_device(size_t i) const { return index_of_device_[i]; }

    // Hashes the weights that go to workers which hold some already, and asks which of them are there.
    // on_progress(fraction) returns false to stop. Throws what rpc::Worker throws.
    void offer_weights(const std::function<bool(double fraction)> & on_progress);

    // The first failure of any worker; from any thread.
    struct Failure {
        size_t index;
        CodedError error;
    };
    std::optional<Failure> failure() const;

    // Why the model did not fit on a worker, if that is so.
    std::optional<CodedError> allocation_failure() const;

    // Null for a worker without a part; from any thread.
    const rpc::WorkerCounters * counters(size_t index) const;

  private:
    const EngineOptions & options_;
    std::vector<std::unique_ptr<rpc::Worker>> workers_;  // one for each of options.workers
    std::vector<ggml_backend_dev_t> devices_;
    std::vector<size_t> index_of_device_;
};

}  // namespace droid
