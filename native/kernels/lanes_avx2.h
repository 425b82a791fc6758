#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/activations.h"

#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
#define DROID_LANES avx2_vnni
#else
#define DROID_LANES avx2
#endif

namespace droid::kernels::DROID_LANES {

struct Lanes {
    static constexpr int rows = 8;
    static constexpr int max_tile = 4;
    static constexpr bool fast_q5_0 = true;

    using Bytes = __m256i;
    using Floats = __m256;

    static Bytes load(const uint8_t * from) { return _mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)); }

    static Floats load_halves(const uint16_t * from) {
        return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    }

    template <int Shift, int Bit>
    static Bytes five_bits(Bytes nibbles, Bytes bits) {
        const Bytes low = _mm256_and_si256(_mm256_srli_epi16(nibbles, Shift), _mm256_set1_epi8(15));
        const Bytes fifth =
            Bit < 4 ? _mm256_slli_epi16(bits, Bit < 4 ? 4 - Bit : 0) : _mm256_srli_epi16(bits, Bit < 4 ? 0 : Bit - 4);
        return _mm256_or_si256(low, _mm256_and_si256(fifth, _mm256_set1_epi8(16)));
    }

    static Floats zero() { return _mm256_setzero_ps(); }

    static Floats add_products(Floats sum, const Bytes (&weights)[quads], const Activations & input, Floats scales) {
        __m256i product = _mm256_set1_epi32(input.bias);
#if defined(__AVXVNNI__) || (defined(__AVX512VNNI__) && defined(__AVX512VL__))
        for (int quad = 0; quad < quads; quad++) product = dot(product, weights[quad], broadcast(input, quad));
#else
        // Eight products of five bits with eight are added up in 16 bits: 8 * 31 * 127 fits.
        const __m256i ones = _mm256_set1_epi16(1);
        for (int half = 0; half < quads; half += quads / 2) {
            __m256i pairs = _mm256_maddubs_epi16(weights[half], broadcast(input, half));
            for (int quad = half + 1; quad < half + quads / 2; quad++) {
                pairs = _mm256_add_epi16(pairs, _mm256_maddubs_epi16(weights[quad], broadcast(input, quad)));
            }
            product = _mm256_add_epi32(product, _mm256_madd_epi16(pairs, ones));
        }
#endif
        const __m256 scale = _mm256_mul_ps(scales, _mm256_set1_ps(input.scale));
        return _mm256_fmadd_ps(_mm256_cvtepi32_ps(product), scale, sum);
    }

    static void store(float * to, Floats floats) {
        _mm256_storeu_ps(to, floats);
    }

  private:
    static __m256i broadcast(const Activations & input, int quad) {
        int32_t values;
        std::memcpy(&values, input.values + 4 * quad, sizeof values);
        return _mm256_set1_epi32(values);
    }

  public:
#if defined(__AVXVNNI__)
    static constexpr bool fast_q8_0 = true;

  private:
    static __m256i dot(__m256i sum, __m256i weights, __m256i values) {
        return _mm256_dpbusd_avx_epi32(sum, weights, values);
    }
#elif defined(__AVX512VNNI__) && defined(__AVX512VL__)
    static constexpr bool fast_q8_0 = true;

  private:
    static __m256i dot(__m256i sum, __m256i weights, __m256i values) {
        return _mm256_dpbusd_epi32(sum, weights, values);
    }
#else
    // Products of eight bits with eight overflow in 16.
    static constexpr bool fast_q8_0 = false;
#endif
};

}  // namespace droid::kernels::DROID_LANES
