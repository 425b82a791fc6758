/** The repacked kernels of native/kernels/, for every instruction set that the compiler knows and this CPU has. */
#include <algorithm>
#include <string>

#include "check.h"
#include "kernel_reference.h"
#include "kernel_variant.h"
#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace droid::test {

// Those that kernel_variants.cmake compiles, separated by commas.
extern const KernelVariant KERNEL_VARIANTS;

namespace {

bool runs_here(const std::string & name) {
#if defined(__x86_64__)
    if (name == "avx2") return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (name != "plain") return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vl");
#elif defined(__aarch64__) && defined(__linux__)
    if (name == "dotprod") return getauxval(AT_HWCAP) >> 20 & 1;
    if (name == "i8mm") return getauxval(AT_HWCAP2) >> 13 & 1;
#endif
    return name == "plain";
}

std::vector<KernelVariant> variants() {
    std::vector<KernelVariant> list = {KERNEL_VARIANTS};
    const auto foreign = [](const KernelVariant & variant) { return !runs_here(variant.name); };
    list.erase(std::remove_if(list.begin(), list.end(), foreign), list.end());
    return list;
}

// A tile of the input: a block of each row, then the next block of each.
std::vector<kernels::Activations> random_input(int64_t blocks, int rows, int offset, std::mt19937 & random) {
    std::vector<kernels::Activations> input(static_cast<size_t>(blocks * rows));
    for (kernels::Activations & block : input) {
        const uint32_t kind = random() % 8;
        block.scale =
            kind == 0 ? 0 : std::ldexp(static_cast<float>(random() % 2048), static_cast<int>(random() % 24) - 24);
        int sum = 0;
        for (int8_t & value : block.values) {
            // All at their largest, of one sign or alternating, is where narrower sums would overflow.
            const int largest = kind == 1 || random() % 2 ? 127 : -127;
            value = static_cast<int8_t>(kind < 3 ? largest : static_cast<int>(random() % 255) - 127);
            sum += value;
        }
        block.bias = -offset * sum;
    }
    return input;
}

void check_products(const KernelVariant & variant, const KernelFormat & format, int bits, int64_t columns, int rows,
                    bool largest, std::mt19937 & random) {
    const int64_t blocks = columns / block_size;
    PlainWeights weights = random_weights(bits, variant.lane_rows * 2, columns, random);
    if (largest) std::fill(weights.data.begin(), weights.data.end(), bits == 8 ? 0x7f : 0xff);
    if (largest) {
        for (size_t at = 0; at < weights.data.size(); at += weights.block_bytes()) weights.data[at + 1] = 0x24;
    }
    std::vector<uint8_t> repacked(weights.data.size());
    format.repack(weights.data.data(), repacked.data(), weights.rows, columns);
    const auto input = random_input(blocks, rows, bits == 5 ? 16 : 128, random);
    const size_t group_bytes = weights.data.size() / 2;
    for (int group = 0; group < 2; group++) {
        // What lies around the results must stay as it is.
        const int stride = variant.lane_rows + 3;
        std::vector<float> results(static_cast<size_t>(rows * stride), -7.5f);
        std::vector<float *> out;
        for (int i = 0; i < rows; i++) out.push_back(results.data() + i * stride);
        format.multiply(repacked.data() + group * group_bytes, blocks, input.data(), rows, out.data());
        for (int i = 0; i < rows; i++) {
            for (int row = 0; row < stride; row++) {
                const float actual = results[static_cast<size_t>(i * stride + row)];
                if (row >= variant.lane_rows) {
                    CHECK_EQUAL(actual, -7.5f);
                    continue;
                }
                Expected expected;
                for (int64_t block = 0; block < blocks; block++) {
                    const kernels::Activations & with = input[static_cast<size_t>(block * rows + i)];
                    int sum = 0;
                    for (int64_t k = 0; k < block_size; k++) {
                        sum += weights.value(group * variant.lane_rows + row, block, k) * with.values[k];
                    }
                    const double scale = weights.scale(group * variant.lane_rows + row, block);
                    expected.add_block(scale * double(with.scale) * sum, blocks);
                }
                if (expected.admits(actual)) continue;
                throw Failure(std::string(variant.name) + ", " + std::to_string(bits) + " bits, " +
                              std::to_string(columns) + " columns, " + std::to_string(rows) +
                              " rows: " + std::to_string(actual) + " instead of " + std::to_string(expected.value));
            }
        }
    }
}

void check_format(KernelFormat KernelVariant::*format, int bits) {
    std::mt19937 random(1);
    for (const KernelVariant & variant : variants()) {
        if (!(variant.*format).exists) continue;
        for (int rows = 1; rows <= variant.max_tile; rows++) {
            for (const int64_t columns : {32, 64, 96, 896}) {
                check_products(variant, variant.*format, bits, columns, rows, false, random);
                check_products(variant, variant.*format, bits, columns, rows, true, random);
            }
        }
    }
}

}  // namespace

}  // namespace droid::test

using namespace droid::test;

TEST(kernels_multiply_q5_0) {
    check_format(&KernelVariant::q5_0, 5);
}

TEST(kernels_multiply_q8_0) {
    check_format(&KernelVariant::q8_0, 8);
}

// A stream's tokens must not depend on how many others it is computed with.
TEST(kernels_give_the_same_result_in_every_batch) {
    std::mt19937 random(2);
    constexpr int64_t blocks = 28;
    for (const KernelVariant & variant : variants()) {
        const PlainWeights weights = random_weights(5, variant.lane_rows, blocks * block_size, random);
        std::vector<uint8_t> repacked(weights.data.size());
        variant.q5_0.repack(weights.data.data(), repacked.data(), weights.rows, weights.columns);
        const auto input = random_input(blocks, 1, 16, random);
        const auto row = static_cast<size_t>(variant.lane_rows);
        std::vector<float> alone(row);
        float * out = alone.data();
        variant.q5_0.multiply(repacked.data(), blocks, input.data(), 1, &out);
        for (int rows = 2; rows <= variant.max_tile; rows++) {
            std::vector<droid::kernels::Activations> batch;
            for (const auto & block : input) batch.insert(batch.end(), static_cast<size_t>(rows), block);
            std::vector<float> results(row * static_cast<size_t>(rows));
            std::vector<float *> outs;
            for (int i = 0; i < rows; i++) outs.push_back(results.data() + static_cast<size_t>(i) * row);
            variant.q5_0.multiply(repacked.data(), blocks, batch.data(), rows, outs.data());
            for (int i = 0; i < rows; i++) CHECK(!std::memcmp(outs[static_cast<size_t>(i)], out, row * sizeof(float)));
        }
    }
}
