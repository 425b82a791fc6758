#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"

#define DROID_LANES avx512

namespace droid::kernels::avx512 {

struct Lanes {
    static constexpr int rows = 16;
    static constexpr int max_tile = 12;
    static constexpr bool fast_q5_0 = true;
    static constexpr bool fast_q8_0 = true;

    using Bytes = __m512i;
    using Floats = __m512;

    static Bytes load(const uint8_t * from) { return _mm512_loadu_si512(from); }

    static Floats load_halves(const uint16_t * from) {
        return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    }

    template <int Shift, int Bit>
    static Bytes five_bits(Bytes nibbles, Bytes bits) {
        const Bytes low = _mm512_and_si512(_mm512_srli_epi16(nibbles, Shift), _mm512_set1_epi8(15));
        const Bytes fifth =
            Bit < 4 ? _mm512_slli_epi16(bits, Bit < 4 ? 4 - Bit : 0) : _mm512_srli_epi16(bits, Bit < 4 ? 0 : Bit - 4);
        return _mm512_or_si512(low, _mm512_and_si512(fifth, _mm512_set1_epi8(16)));
    }

    static Floats zero() { return _mm512_setzero_ps(); }

    static Floats add_products(Floats sum, const Bytes (&weights)[quads], const Activations & input, Floats scales) {
        __m512i product = _mm512_set1_epi32(input.bias);
        for (int quad = 0; quad < quads; quad++) {
            int32_t values;
            std::memcpy(&values, input.values + 4 * quad, sizeof values);
            product = _mm512_dpbusd_epi32(product, weights[quad], _mm512_set1_epi32(values));
        }
        const __m512 scale = _mm512_mul_ps(scales, _mm512_set1_ps(input.scale));
        return _mm512_fmadd_ps(_mm512_cvtepi32_ps(product), scale, sum);
    }

    static void store(float * to, Floats floats) { _mm512_storeu_ps(to, floats); }
};

}  // namespace droid::kernels::avx512
