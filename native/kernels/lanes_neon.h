#pragma once

#include <arm_neon.h>

#include <cstdint>

#include "kernels/activations.h"

#if defined(__ARM_FEATURE_MATMUL_INT8)
#define DROID_LANES neon_i8mm
#else
#define DROID_LANES neon_dotprod
#endif

namespace droid::kernels::DROID_LANES {

struct Lanes {
    static constexpr int rows = 4;
    static constexpr int max_tile = 8;
    static constexpr bool fast_q5_0 = true;
    // llama.cpp repacks them itself; and here bytes are signed, so that they would need another layout.
    static constexpr bool fast_q8_0 = false;

    using Bytes = int8x16_t;
    using Floats = float32x4_t;

    static Bytes load(const uint8_t * from) { return vreinterpretq_s8_u8(vld1q_u8(from)); }

    static Floats load_halves(const uint16_t * from) { return vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(from))); }

    template <int Shift, int Bit>
    static Bytes five_bits(Bytes nibbles, Bytes bits) {
        uint8x16_t low = vreinterpretq_u8_s8(nibbles);
        uint8x16_t fifth = vreinterpretq_u8_s8(bits);
        if constexpr (Shift > 0) low = vshrq_n_u8(low, Shift);
        if constexpr (Bit > 0) fifth = vshrq_n_u8(fifth, Bit);
        return vreinterpretq_s8_u8(vandq_u8(vsliq_n_u8(low, fifth, 4), vdupq_n_u8(31)));
    }

    static Floats zero() { return vdupq_n_f32(0); }

    static Floats add_products(Floats sum, const Bytes (&weights)[quads], const Activations & input, Floats scales) {
        const int8x16_t first = vld1q_s8(input.values);
        const int8x16_t second = vld1q_s8(input.values + 16);
        // Two sums, since each instruction waits for the one before on processors that compute in order.
        int32x4_t even = vdupq_n_s32(input.bias);
        int32x4_t odd = vdupq_n_s32(0);
        even = vdotq_laneq_s32(even, weights[0], first, 0);
        odd = vdotq_laneq_s32(odd, weights[1], first, 1);
        even = vdotq_laneq_s32(even, weights[2], first, 2);
        odd = vdotq_laneq_s32(odd, weights[3], first, 3);
        even = vdotq_laneq_s32(even, weights[4], second, 0);
        odd = vdotq_laneq_s32(odd, weights[5], second, 1);
        even = vdotq_laneq_s32(even, weights[6], second, 2);
        odd = vdotq_laneq_s32(odd, weights[7], second, 3);
        const float32x4_t product = vcvtq_f32_s32(vaddq_s32(even, odd));
        return vfmaq_f32(sum, product, vmulq_n_f32(scales, input.scale));
    }

    static void store(float * to, Floats floats) { vst1q_f32(to, floats); }
};

}  // namespace droid::kernels::DROID_LANES
