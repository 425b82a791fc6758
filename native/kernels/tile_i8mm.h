#pragma once

#include <cstddef>
#include <cstring>
#include <utility>

#include "kernels/lanes_neon.h"

namespace droid::kernels::DROID_LANES {

/** Two rows of the input, with the instruction that multiplies two rows of eight columns with two others. */
class PairSums {
  public:
    // The weights are rows 0 and 1, then 2 and 3, eight columns at a time.
    void add(const Lanes::Bytes (&weights)[2][4], float32x4x2_t scales, const Activations * input) {
        const int8x16_t rows[] = {vld1q_s8(input[0].values), vld1q_s8(input[1].values), vld1q_s8(input[0].values + 16),
                                  vld1q_s8(input[1].values + 16)};
        const int8x16_t columns[] = {zip<0>(rows[0], rows[1]), zip<1>(rows[0], rows[1]), zip<0>(rows[2], rows[3]),
                                     zip<1>(rows[2], rows[3])};
        const uint32x2x2_t heads = vzip_u32(head_of(input[0]), head_of(input[1]));
        const float32x4_t scale = vreinterpretq_f32_u32(vcombine_u32(heads.val[0], heads.val[0]));
        const int32x4_t bias = vreinterpretq_s32_u32(vcombine_u32(heads.val[1], heads.val[1]));
        for (int half = 0; half < 2; half++) {
            int32x4_t product = bias;
            for (int i = 0; i < 4; i++) product = vmmlaq_s32(product, weights[half][i], columns[i]);
            sums_[half] = vfmaq_f32(sums_[half], vcvtq_f32_s32(product), vmulq_f32(scales.val[half], scale));
        }
    }

    void store(float * const * out) const {
        Lanes::store(out[0], vuzp1q_f32(sums_[0], sums_[1]));
        Lanes::store(out[1], vuzp2q_f32(sums_[0], sums_[1]));
    }

  private:
    // The scale and the bias, loaded at once.
    static uint32x2_t head_of(const Activations & input) {
        uint64_t head;
        std::memcpy(&head, &input, sizeof head);
        return vcreate_u32(head);
    }

    template <int Half>
    static int8x16_t zip(int8x16_t a, int8x16_t b) {
        const int64x2_t first = vreinterpretq_s64_s8(a), second = vreinterpretq_s64_s8(b);
        return vreinterpretq_s8_s64(Half ? vzip2q_s64(first, second) : vzip1q_s64(first, second));
    }

    // Row 0 with both rows of the input, then row 1; and the same of rows 2 and 3.
    float32x4_t sums_[2] = {Lanes::zero(), Lanes::zero()};
};

template <typename Pairs, bool odd>
class TileOf;

/** As the Tile of other instructions, with the same results. */
template <size_t rows>
using Tile = TileOf<std::make_index_sequence<rows / 2>, rows % 2 == 1>;

template <size_t... pair, bool odd>
class TileOf<std::index_sequence<pair...>, odd> {
  public:
    void add(const Lanes::Bytes (&weights)[quads], Lanes::Floats scales, const Activations * input) {
        if constexpr (sizeof...(pair) > 0) {
            Lanes::Bytes paired[2][4];
            for (int i = 0; i < 4; i++) {
                const int32x4_t first = vreinterpretq_s32_s8(weights[2 * i]);
                const int32x4_t second = vreinterpretq_s32_s8(weights[2 * i + 1]);
                paired[0][i] = vreinterpretq_s8_s32(vzip1q_s32(first, second));
                paired[1][i] = vreinterpretq_s8_s32(vzip2q_s32(first, second));
            }
            const float32x4x2_t twice = vzipq_f32(scales, scales);
            (pairs_[pair].add(paired, twice, input + 2 * pair), ...);
        }
        if constexpr (odd) last_ = Lanes::add_products(last_, weights, input[2 * sizeof...(pair)], scales);
    }

    void store(float * const * out) const {
        (pairs_[pair].store(out + 2 * pair), ...);
        if constexpr (odd) Lanes::store(out[2 * sizeof...(pair)], last_);
    }

  private:
    // An array has at least one element.
    PairSums pairs_[sizeof...(pair) + 1];
    Lanes::Floats last_ = Lanes::zero();
};

}  // namespace droid::kernels::DROID_LANES
