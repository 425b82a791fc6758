#pragma once

#include <cstddef>
#include <utility>

#include "kernels/lanes.h"

namespace droid::kernels::DROID_LANES {

template <typename Rows>
class TileOf;

/** The sums of Lanes::rows rows of weights with some rows of the input. */
template <size_t rows>
using Tile = TileOf<std::make_index_sequence<rows>>;

// The rows are parameters, because compilers do not unroll long loops and then keep the sums in memory.
template <size_t... row>
class TileOf<std::index_sequence<row...>> {
  public:
    /** Adds a block of 32 columns, of which the input has its rows one after the other. */
    void add(const Lanes::Bytes (&weights)[quads], Lanes::Floats scales, const Activations * input) {
        ((sums_[row] = Lanes::add_products(sums_[row], weights, input[row], scales)), ...);
    }

    void store(float * const * out) const { (Lanes::store(out[row], sums_[row]), ...); }

  private:
    Lanes::Floats sums_[sizeof...(row)] = {(static_cast<void>(row), Lanes::zero())...};
};

}  // namespace droid::kernels::DROID_LANES
