#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <utility>

#include "kernels/weights.h"
#if defined(__ARM_FEATURE_MATMUL_INT8) && !defined(DROID_KERNELS_PLAIN)
#include "kernels/tile_i8mm.h"
#else
#include "kernels/tile.h"
#endif

namespace droid::kernels::DROID_LANES {

// With several rows of the input, computing hides the time that weights take to arrive, if they are asked for early
// enough; with fewer, the processor's own prefetching is better left alone.
constexpr size_t prefetched_rows = 4;
constexpr size_t prefetch_bytes = 3072;

template <typename Group>
void prefetch(const Group * weights) {
    const char * from = reinterpret_cast<const char *>(weights) + prefetch_bytes;
    for (size_t i = 0; i < sizeof(Group); i += 64) __builtin_prefetch(from + i);
}

// A sum takes its blocks in the same order whatever the tile, so results do not depend on the batch.
template <typename Format, size_t rows>
void multiply_tile(const typename Format::Group * weights, const Activations * input, int64_t blocks,
                   float * const * out) {
    Tile<rows> sums;
    for (int64_t block = 0; block < blocks; block++, input += rows) {
        Lanes::Bytes unpacked[quads];
        if constexpr (rows >= prefetched_rows) prefetch(weights + block);
        Format::unpack(weights[block], unpacked);
        sums.add(unpacked, Lanes::load_halves(weights[block].scales), input);
    }
    sums.store(out);
}

template <typename Format, size_t... rows>
constexpr auto tiles_of(std::index_sequence<rows...>) {
    return std::array{multiply_tile<Format, rows + 1>...};
}

/**
 * Multiplies Lanes::rows rows of weights with `rows` <= Lanes::max_tile rows of the input, whose blocks of 32 columns
 * each hold all the rows; out[i] gets the results of row i.
 */
template <typename Format>
void multiply(const typename Format::Group * weights, const Activations * input, int rows, int64_t blocks,
              float * const * out) {
    static constexpr auto tiles = tiles_of<Format>(std::make_index_sequence<Lanes::max_tile>());
    tiles[static_cast<size_t>(rows - 1)](weights, input, blocks, out);
}

}  // namespace droid::kernels::DROID_LANES
