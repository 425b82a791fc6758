#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "model_info.h"
#include "rpc/client/worker.h"

namespace droid {

struct WorkerOptions {
    std::string endpoint;  // as the user gave it, for messages and placement
    rpc::WorkerAddress address;
    uint32_t layers = 0;  // how many repeating layers the worker gets
};

struct LoraOptions {
    std::string path;
    float scale = 1.0f;
};

// What JS asks of an engine; validated there. A count of 0 means llama.cpp's default.
struct EngineOptions {
    std::string model;
    std::vector<WorkerOptions> workers;  // the master keeps the first layers, these take the rest in order
    rpc::WorkerTimeouts timeouts;
    bool head_on_worker = false;       // of the last worker
    bool half_activations = false;     // as f16 over the network; refused by workers that do not know how
    std::vector<ModelTensor> tensors;  // ModelInfo::tensors
    uint32_t context_size = 0;
    uint32_t batch_size = 0;
    uint32_t ubatch_size = 0;
    uint32_t parallel = 1;
    uint32_t threads = 0;
    bool mmap = true;
    bool embeddings = false;
    bool reranking = false;
    std::string pooling;  // empty: the model's own
    std::vector<LoraOptions> loras;
    std::string draft;  // path of a draft model
    std::string chat_template;
    std::vector<std::string> llama_args;
    bool llama_env = false;  // heed LLAMA_ARG_* variables
};

}  // namespace droid
