#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"

#define DROID_LANES plain

namespace droid::kernels::plain {

/** What each instruction set has to provide, in plain C++: what tests run anywhere, never used by a device. */
struct Lanes {
    static constexpr int rows = 4;
    /** The most rows of the input that are multiplied at once: what fits into the registers. */
    static constexpr int max_tile = 4;
    /** Whether kernels for these weights are faster than ggml's own. */
    static constexpr bool fast_q5_0 = false;
    static constexpr bool fast_q8_0 = false;

    /** Four columns of each row. */
    struct Bytes {
        uint8_t at[rows][4];
    };
    /** A number for each row. */
    struct Floats {
        float at[rows];
    };

    static Bytes load(const uint8_t * from) {
        Bytes bytes;
        std::memcpy(bytes.at, from, sizeof bytes.at);
        return bytes;
    }

    /** Half-precision numbers, one for each row. */
    static Floats load_halves(const uint16_t * from) {
        Floats floats;
        for (int row = 0; row < rows; row++) floats.at[row] = from_half(from[row]);
        return floats;
    }

    /** The lower (Shift = 0) or upper (4) nibbles, with bit number Bit of `bits` as their fifth one. */
    template <int Shift, int Bit>
    static Bytes five_bits(Bytes nibbles, Bytes bits) {
        Bytes out;
        for (int row = 0; row < rows; row++) {
            for (int i = 0; i < 4; i++) {
                const int low = (nibbles.at[row][i] >> Shift) & 15;
                out.at[row][i] = static_cast<uint8_t>(low | ((bits.at[row][i] >> Bit) & 1) << 4);
            }
        }
        return out;
    }

    static Floats zero() { return {}; }

    /** sum + scales * input.scale * (weights · input.values + input.bias), the integers exactly. */
    static Floats add_products(Floats sum, const Bytes (&weights)[quads], const Activations & input, Floats scales) {
        for (int row = 0; row < rows; row++) {
            int32_t product = input.bias;
            for (int quad = 0; quad < quads; quad++) {
                for (int i = 0; i < 4; i++) product += weights[quad].at[row][i] * input.values[4 * quad + i];
            }
            sum.at[row] += static_cast<float>(product) * (scales.at[row] * input.scale);
        }
        return sum;
    }

    static void store(float * to, Floats floats) { std::memcpy(to, floats.at, sizeof floats.at); }

  private:
    static float from_half(uint16_t half) {
        const uint32_t exponent = half >> 10 & 31;
        const uint32_t mantissa = half & 1023;
        float value = static_cast<float>(mantissa) * 0x1p-24f;  // subnormal
        if (exponent > 0) {
            const uint32_t bits = (exponent == 31 ? 255 : exponent + 112) << 23 | mantissa << 13;
            std::memcpy(&value, &bits, sizeof value);
        }
        return half >> 15 ? -value : value;
    }
};

}  // namespace droid::kernels::plain
