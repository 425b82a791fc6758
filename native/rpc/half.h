#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

namespace droid::rpc {

// Activations in 16 bits. Hidden states of some models go beyond what f16 holds (65504), so that all values of a
// message share a power of two: value = half * 2^exponent. It is 0 unless one of them needs it.

constexpr int max_half_exponent = 112;  // of the largest floats

// The smallest exponent, from 0, that all finite values fit with; beyond 3.4e38, to_half() cuts them.
int half_exponent(const float * values, size_t count);

// Rounded to nearest; infinities and NaN stay what they are. exponent is from 0 to max_half_exponent.
void to_half(const float * values, size_t count, int exponent, ggml_fp16_t * halves);
void from_half(const ggml_fp16_t * halves, size_t count, int exponent, float * values);

}  // namespace droid::rpc
