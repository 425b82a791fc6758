#pragma once

#include <string>
#include <vector>

#include "common.h"
#include "options.h"

namespace droid {

// Turns options into llama.cpp's parameters; devices holds one ggml device for each worker that gets a part.
// Throws CodedError DROID_INVALID_ARGUMENT for a llama-server flag that is unknown, malformed or owned by the package.
common_params make_params(const EngineOptions & options, const std::vector<ggml_backend_dev_t> & devices);

}  // namespace droid
