#include "rpc/half.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iterator>

namespace droid::rpc {

namespace {

constexpr float largest_half = 65504;

}  // namespace

int half_exponent(const float * values, size_t count) {
    // Floats without their sign compare like integers; those from infinity on are not finite.
    constexpr uint32_t infinity = 0x7f800000;
    uint32_t largest = 0;
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        std::memcpy(&bits, values + i, sizeof bits);
        bits &= 0x7fffffff;
        largest = std::max(largest, bits < infinity ? bits : 0);
    }
    float value;
    std::memcpy(&value, &largest, sizeof value);
    int exponent = 0;
    while (exponent < max_half_exponent && std::ldexp(largest_half, exponent) < value) exponent++;
    return exponent;
}

void to_half(const float * values, size_t count, int exponent, ggml_fp16_t * halves) {
    if (exponent == 0) {
        ggml_fp32_to_fp16_row(values, halves, static_cast<int64_t>(count));
        return;
    }
    const float scale = std::ldexp(1.0f, -exponent);
    float scaled[256];
    for (size_t i = 0; i < count; i += std::size(scaled)) {
        const size_t n = std::min(count - i, std::size(scaled));
        for (size_t j = 0; j < n; j++) {
            scaled[j] = values[i + j] * scale;
            if (std::isfinite(scaled[j])) scaled[j] = std::clamp(scaled[j], -largest_half, largest_half);
        }
        ggml_fp32_to_fp16_row(scaled, halves + i, static_cast<int64_t>(n));
    }
}

void from_half(const ggml_fp16_t * halves, size_t count, int exponent, float * values) {
    ggml_fp16_to_fp32_row(halves, values, static_cast<int64_t>(count));
    if (exponent == 0) return;
    const float scale = std::ldexp(1.0f, exponent);
    for (size_t i = 0; i < count; i++) values[i] *= scale;
}

}  // namespace droid::rpc
