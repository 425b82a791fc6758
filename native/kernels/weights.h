#pragma once

#include <cstdint>
#include <cstring>

#define GGML_COMMON_DECL_CPP
#include "ggml-common.h"
#include "kernels/lanes.h"

namespace droid::kernels::DROID_LANES {

// The layouts keep the weights' size to the byte. Rows are taken Lanes::rows at a time, and of these a block of 32
// columns becomes one Group: scales of all rows, then their values, four columns of each row after the other, as the
// instructions for products of bytes want them.

/** 5-bit weights: (value - 16) * scale. */
struct Q5_0 {
    using Block = block_q5_0;
    static constexpr int offset = 16;
    static constexpr bool fast = Lanes::fast_q5_0;

    struct Group {
        uint16_t scales[Lanes::rows];
        /** Bit i is the fifth bit of quad i. */
        uint8_t fifths[4 * Lanes::rows];
        /** Of the quads i and i + 4. */
        uint8_t nibbles[quads / 2][4 * Lanes::rows];
    };
    static_assert(sizeof(Group) == Lanes::rows * sizeof(Block), "repacked weights take the space of plain ones");

    static void pack(const Block & block, int row, Group & group) {
        std::memcpy(group.scales + row, &block.d, sizeof group.scales[0]);
        for (int i = 0; i < quads / 2; i++) std::memcpy(group.nibbles[i] + 4 * row, block.qs + 4 * i, 4);
        uint32_t bits;
        std::memcpy(&bits, block.qh, sizeof bits);
        for (int i = 0; i < 4; i++) group.fifths[4 * row + i] = every_fourth_bit(bits >> i);
    }

    static void unpack(const Group & group, Lanes::Bytes (&weights)[quads]) {
        const Lanes::Bytes fifths = Lanes::load(group.fifths);
        const Lanes::Bytes nibbles[] = {Lanes::load(group.nibbles[0]), Lanes::load(group.nibbles[1]),
                                        Lanes::load(group.nibbles[2]), Lanes::load(group.nibbles[3])};
        weights[0] = Lanes::five_bits<0, 0>(nibbles[0], fifths);
        weights[1] = Lanes::five_bits<0, 1>(nibbles[1], fifths);
        weights[2] = Lanes::five_bits<0, 2>(nibbles[2], fifths);
        weights[3] = Lanes::five_bits<0, 3>(nibbles[3], fifths);
        weights[4] = Lanes::five_bits<4, 4>(nibbles[0], fifths);
        weights[5] = Lanes::five_bits<4, 5>(nibbles[1], fifths);
        weights[6] = Lanes::five_bits<4, 6>(nibbles[2], fifths);
        weights[7] = Lanes::five_bits<4, 7>(nibbles[3], fifths);
    }

  private:
    static uint8_t every_fourth_bit(uint32_t bits) {
        bits &= 0x11111111;
        bits = (bits | bits >> 3) & 0x03030303;
        bits = (bits | bits >> 6) & 0x000f000f;
        return static_cast<uint8_t>(bits | bits >> 12);
    }
};

/** 8-bit weights: (value - 128) * scale. */
struct Q8_0 {
    using Block = block_q8_0;
    static constexpr int offset = 128;
    static constexpr bool fast = Lanes::fast_q8_0;

    struct Group {
        uint16_t scales[Lanes::rows];
        uint8_t values[quads][4 * Lanes::rows];
    };
    static_assert(sizeof(Group) == Lanes::rows * sizeof(Block), "repacked weights take the space of plain ones");

    static void pack(const Block & block, int row, Group & group) {
        std::memcpy(group.scales + row, &block.d, sizeof group.scales[0]);
        for (int i = 0; i < quads; i++) {
            uint32_t values;
            std::memcpy(&values, block.qs + 4 * i, sizeof values);
            values ^= 0x80808080;
            std::memcpy(group.values[i] + 4 * row, &values, sizeof values);
        }
    }

    static void unpack(const Group & group, Lanes::Bytes (&weights)[quads]) {
        for (int i = 0; i < quads; i++) weights[i] = Lanes::load(group.values[i]);
    }
};

/** Lays `rows` rows (a multiple of Lanes::rows) of `columns` weights (a multiple of 32) out for the kernels. */
template <typename Format>
void repack(const typename Format::Block * from, typename Format::Group * to, int64_t rows, int64_t columns) {
    const int64_t blocks = columns / block_columns;
    for (int64_t first = 0; first < rows; first += Lanes::rows) {
        for (int64_t block = 0; block < blocks; block++, to++) {
            for (int row = 0; row < Lanes::rows; row++) Format::pack(from[(first + row) * blocks + block], row, *to);
        }
    }
}

}  // namespace droid::kernels::DROID_LANES
