#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "rpc/client/manifest.h"

namespace droid {

// A tensor of a model, and where its data lies.
struct ModelTensor {
    rpc::TensorInFile data;
    int32_t layer = -1;  // the repeating layer it belongs to; -1 for one outside the layers
};

// What a GGUF says about a model, read without loading it.
struct ModelInfo {
    std::string architecture;
    std::string name;
    uint32_t context_length = 0;            // tokens the model was trained for; 0 when the file does not say
    std::vector<uint64_t> layer_bytes;      // weights of each repeating layer
    uint64_t other_bytes = 0;               // everything outside the layers: embeddings, head, projectors
    uint64_t head_bytes = 0;                // of the tensors llama.cpp loads into the output layer
    uint64_t kv_bytes_per_token_layer = 0;  // F16 K and V of one token in one layer; 0 when not plain attention
    // Of layer_bytes, what one token reads: all of it, but for the experts that it is not sent to.
    std::vector<uint64_t> active_bytes_per_layer;
    // 0 when the file does not say; the largest where layers differ.
    uint64_t embedding_length = 0;
    uint64_t feed_forward_length = 0;  // in a mixture of experts, of all that one token is sent to
    uint64_t head_count = 0;
    uint64_t vocabulary_size = 0;
    std::vector<ModelTensor> tensors;  // of all files
};

// The repeating layer that the name of a tensor says, or -1.
int layer_of(const std::string & tensor);

// Reads path and, for a split model, the files beside it.
// Throws CodedError: DROID_MODEL_NOT_FOUND, DROID_MODEL_INVALID or DROID_MODEL_UNSUPPORTED.
ModelInfo read_model_info(const std::string & path);

}  // namespace droid
