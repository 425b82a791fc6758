#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

namespace droid {

struct DevicePlacement {
    std::vector<int> layers;
    bool head = false;
    uint64_t bytes = 0;
};

// Where llama.cpp really put the weights, read from the tensors' buffers: one entry for the master, then one for each
// of devices. (llama_model::dev_output() and dev_layer() do not know of tensor overrides.)
std::vector<DevicePlacement> read_placement(const llama_model * model, const std::vector<ggml_backend_dev_t> & devices);

}  // namespace droid
