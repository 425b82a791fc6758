// Compiled once for each instruction set, with KERNEL_VARIANT as the name of what it defines.
#include "kernel_variant.h"

#include "kernels/multiply.h"

namespace droid::test {

namespace {

using namespace kernels::DROID_LANES;

template <typename Format>
constexpr KernelFormat format_of(bool exists) {
    if (!exists) return {};
    return {
        true,
        [](const void * from, void * to, int64_t rows, int64_t columns) {
            repack<Format>(static_cast<const typename Format::Block *>(from), static_cast<typename Format::Group *>(to),
                           rows, columns);
        },
        [](const void * weights, int64_t blocks, const kernels::Activations * input, int rows, float * const * out) {
            multiply<Format>(static_cast<const typename Format::Group *>(weights), input, rows, blocks, out);
        }};
}

constexpr bool is_plain = !Lanes::fast_q5_0;

}  // namespace

extern const KernelVariant KERNEL_VARIANT;
const KernelVariant KERNEL_VARIANT = {KERNEL_VARIANT_NAME, Lanes::rows, Lanes::max_tile,
                                      format_of<Q5_0>(Lanes::fast_q5_0 || is_plain),
                                      format_of<Q8_0>(Lanes::fast_q8_0 || is_plain)};

}  // namespace droid::test
