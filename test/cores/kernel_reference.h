#pragma once

// Weights of each type that has repacked kernels, and their products in double precision.

#include <cmath>
#include <cstdint>
#include <cstring>
#include <random>
#include <vector>

namespace droid::test {

constexpr int64_t block_size = 32;

inline double from_half(uint16_t half) {
    const int exponent = half >> 10 & 31;
    const int mantissa = half & 1023;
    const double value = exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24);
    return half >> 15 ? -value : value;
}

/** A matrix as a model's file holds it: blocks of scale, values. */
struct PlainWeights {
    int bits;  // 5: Q5_0, 8: Q8_0
    int64_t rows, columns;
    std::vector<uint8_t> data;

    size_t block_bytes() const { return bits == 5 ? 22 : 34; }
    const uint8_t * block(int64_t row, int64_t index) const {
        return data.data() + static_cast<size_t>(row * (columns / block_size) + index) * block_bytes();
    }
    double scale(int64_t row, int64_t index) const {
        uint16_t half;
        std::memcpy(&half, block(row, index), sizeof half);
        return from_half(half);
    }
    int value(int64_t row, int64_t index, int64_t i) const {
        const uint8_t * bytes = block(row, index) + 2;
        if (bits == 8) return static_cast<int8_t>(bytes[i]);
        const int low = i < 16 ? bytes[4 + i] & 15 : bytes[4 + i - 16] >> 4;
        return (low | (bytes[i / 8] >> (i % 8) & 1) << 4) - 16;
    }
};

/** Every value a block can have; scales of all sizes, negative, zero and subnormal, but none so large as to be no
 * number. */
inline PlainWeights random_weights(int bits, int64_t rows, int64_t columns, std::mt19937 & random) {
    PlainWeights weights{bits, rows, columns, {}};
    weights.data.resize(static_cast<size_t>(rows * (columns / block_size)) * weights.block_bytes());
    for (uint8_t & byte : weights.data) byte = static_cast<uint8_t>(random());
    for (size_t at = 0; at < weights.data.size(); at += weights.block_bytes()) {
        const uint32_t kind = random() % 8;
        uint16_t half = static_cast<uint16_t>(random());
        if (kind == 0) half &= 0x8000;                                             // zero
        if (kind == 1) half &= 0x83ff;                                             // subnormal
        if (kind > 2) half = static_cast<uint16_t>((half & 0x83ff) | 0x2400);      // about 1/64
        if ((half >> 10 & 31) == 31) half = static_cast<uint16_t>(half & 0xfbff);  // infinite
        std::memcpy(weights.data.data() + at, &half, sizeof half);
    }
    return weights;
}

/** A product, and how far off it may be: by the rounding of each block's scale, product and sum. */
struct Expected {
    double value = 0, tolerance = 0;

    void add_block(double product, int64_t blocks) {
        value += product;
        tolerance += std::fabs(product) * static_cast<double>(blocks + 4) * std::ldexp(1, -24);
    }
    bool admits(float actual) const { return std::fabs(actual - value) <= tolerance + 1e-30; }
};

}  // namespace droid::test
