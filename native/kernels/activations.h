#pragma once

#include <cstdint>

namespace droid::kernels {

// Columns that share a scale, in the weights and in what they are multiplied with.
constexpr int block_columns = 32;

// Weights are kept as unsigned numbers of four neighbouring columns.
constexpr int quads = block_columns / 4;

/** 32 values of a row of the input, quantized as Q8_0. */
struct Activations {
    float scale;
    /** What the weights' offset adds to a product: -offset * sum(values). */
    int32_t bias;
    int8_t values[block_columns];
};

}  // namespace droid::kernels
