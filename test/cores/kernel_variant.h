#pragma once

#include <cstdint>

#include "kernels/activations.h"

namespace droid::test {

/** The kernels for one type of weights. */
struct KernelFormat {
    bool exists;
    void (*repack)(const void * from, void * to, int64_t rows, int64_t columns);
    /** lane_rows rows of weights by `rows` of the input. */
    void (*multiply)(const void * weights, int64_t blocks, const kernels::Activations * input, int rows,
                     float * const * out);
};

/** native/kernels/ as compiled for one instruction set; function pointers only, since this CPU may not have it. */
struct KernelVariant {
    const char * name;
    int lane_rows;
    int max_tile;
    KernelFormat q5_0, q8_0;
};

}  // namespace droid::test
