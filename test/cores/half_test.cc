#include "rpc/half.h"

#include <cmath>
#include <limits>
#include <vector>

#include "check.h"

using namespace droid::rpc;

namespace {

std::vector<float> there_and_back(const std::vector<float> & values, int & exponent) {
    exponent = half_exponent(values.data(), values.size());
    CHECK(exponent >= 0 && exponent <= max_half_exponent);
    std::vector<ggml_fp16_t> halves(values.size());
    to_half(values.data(), values.size(), exponent, halves.data());
    std::vector<float> result(values.size());
    from_half(halves.data(), halves.size(), exponent, result.data());
    return result;
}

}  // namespace

TEST(halves_keep_eleven_bits) {
    std::vector<float> values;
    for (float value = 1e-4f; value < 65000; value *= 1.01f) values.insert(values.end(), {value, -value});
    int exponent = 0;
    const std::vector<float> result = there_and_back(values, exponent);
    CHECK_EQUAL(exponent, 0);
    for (size_t i = 0; i < values.size(); i++) CHECK(std::fabs(result[i] - values[i]) <= std::fabs(values[i]) / 2048);
}

TEST(no_finite_value_becomes_infinite) {
    for (float largest = 60000; std::isfinite(largest); largest *= 1.7f) {
        std::vector<float> values(600, 1.0f);
        values[300] = -largest;
        values[599] = largest;
        int exponent = 0;
        const std::vector<float> result = there_and_back(values, exponent);
        CHECK_EQUAL(exponent > 0, largest > 65504);
        CHECK(std::fabs(result[300] + largest) <= largest / 2048);
        CHECK(std::fabs(result[599] - largest) <= largest / 2048);
        if (largest < 1e6f) CHECK(std::fabs(result[0] - 1) < 1e-3f);
    }
    int exponent = 0;
    const float most = std::numeric_limits<float>::max();
    CHECK(std::isfinite(there_and_back({most}, exponent)[0]));
    CHECK_EQUAL(exponent, max_half_exponent);
}

TEST(what_is_no_number_stays_so) {
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float other : {1.0f, 1e9f}) {
        int exponent = 0;
        const auto result = there_and_back({infinity, -infinity, std::nanf(""), other, 0.0f, -0.0f}, exponent);
        CHECK_EQUAL(result[0], infinity);
        CHECK_EQUAL(result[1], -infinity);
        CHECK(std::isnan(result[2]));
        CHECK(std::fabs(result[3] - other) <= other / 2048);
        CHECK(result[4] == 0 && result[5] == 0 && std::signbit(result[5]));
    }
}
