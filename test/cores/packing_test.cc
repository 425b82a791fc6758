#include "rpc/packing.h"

#include <cstring>
#include <random>
#include <string>

#include "check.h"

using droid::rpc::pack;
using droid::rpc::unpack;
using Bytes = std::vector<uint8_t>;

namespace {

// Its packed form, which gives it back.
Bytes packed_form(const Bytes & data) {
    Bytes packed, again(data.size());
    CHECK(pack(data.data(), data.size(), SIZE_MAX, packed));
    CHECK(unpack(packed.data(), packed.size(), again.data(), again.size()));
    CHECK(again == data);
    return packed;
}

// A row of a causal mask: what may be seen, then what may not.
Bytes mask_row(size_t cells, size_t seen) {
    std::vector<uint16_t> row(cells, 0xfc00);
    std::fill_n(row.begin(), seen, uint16_t{0});
    const auto * bytes = reinterpret_cast<const uint8_t *>(row.data());
    return Bytes(bytes, bytes + row.size() * sizeof row[0]);
}

bool unpacks(const Bytes & packed, size_t size) {
    // With nothing around it that a sanitizer would not see.
    const Bytes exact(packed);
    Bytes data(size);
    return unpack(exact.data(), exact.size(), data.data(), data.size());
}

}  // namespace

TEST(masks_become_small) {
    for (const size_t cells : {256u, 4096u}) {
        for (const size_t seen : {size_t{1}, cells / 2, cells - 1, cells}) {
            CHECK(packed_form(mask_row(cells, seen)).size() < 24);
        }
    }
    Bytes prompt;
    for (size_t token = 0; token < 64; token++) {
        const Bytes row = mask_row(1024, 512 + token);
        prompt.insert(prompt.end(), row.begin(), row.end());
    }
    CHECK(packed_form(prompt).size() < prompt.size() / 100);
}

TEST(whatever_is_packed_comes_back) {
    std::mt19937 random(1);
    const auto pick = [&](size_t n) { return std::uniform_int_distribution<size_t>(0, n - 1)(random); };
    for (size_t size = 0; size < 20; size++) packed_form(Bytes(size, 7));
    for (int i = 0; i < 2000; i++) {
        Bytes data;
        while (data.size() < pick(3000)) {
            const size_t n = 1 + pick(100);
            if (pick(2) == 0 || data.empty()) {
                for (size_t j = 0; j < n; j++) data.push_back(static_cast<uint8_t>(pick(i % 7 ? 256 : 3)));
            } else {
                const size_t from = pick(data.size());
                for (size_t j = 0; j < n; j++) data.push_back(data[from + j]);
            }
        }
        packed_form(data);
    }
}

TEST(what_does_not_become_smaller_is_left) {
    std::mt19937 random(1);
    Bytes noise(100000), packed;
    for (uint8_t & byte : noise) byte = static_cast<uint8_t>(random());
    CHECK(!pack(noise.data(), noise.size(), noise.size(), packed));
    const Bytes zeros(1000);
    CHECK(pack(zeros.data(), zeros.size(), 100, packed) && packed.size() < 100);
    CHECK(!pack(zeros.data(), zeros.size(), packed.size(), packed));
}

TEST(nonsense_is_not_unpacked) {
    CHECK(unpacks({}, 0));
    CHECK(unpacks({3, 1, 2, 3, 0}, 3));
    CHECK(unpacks({1, 5, 9, 1}, 10));
    CHECK(!unpacks({}, 1));
    CHECK(!unpacks({0}, 0));                              // more than that
    CHECK(!unpacks({3, 1, 2, 3, 0, 0}, 3));               // the same
    CHECK(!unpacks({3, 1, 2, 3}, 3));                     // it ends early
    CHECK(!unpacks({3, 1, 2}, 3));                        // the same
    CHECK(!unpacks({1, 5, 8, 1}, 10));                    // too little
    CHECK(!unpacks({1, 5, 10, 1}, 10));                   // too much
    CHECK(!unpacks({11, 5, 0}, 10));                      // the same
    CHECK(!unpacks({1, 5, 9, 0}, 10));                    // from here
    CHECK(!unpacks({1, 5, 9, 2}, 10));                    // from before the beginning
    CHECK(!unpacks({0, 9, 1}, 9));                        // the same
    CHECK(!unpacks({0, 0, 0, 0, 0, 0}, 1));               // nothing, again and again
    CHECK(!unpacks({0x81, 0x80, 0x80, 0x80, 0x80}, 1));   // no end of a number
    CHECK(!unpacks({0xff, 0xff, 0xff, 0xff, 0x7f}, 10));  // a number without bounds
}

TEST(changed_bytes_stay_within_bounds) {
    std::mt19937 random(1);
    const Bytes packed = packed_form(mask_row(512, 100));
    for (int i = 0; i < 20000; i++) {
        Bytes changed = packed;
        for (int j = 0; j < 1 + i % 3; j++) changed[random() % changed.size()] = static_cast<uint8_t>(random());
        if (i % 5 == 0) changed.resize(random() % changed.size());
        unpacks(changed, 1024);
    }
}
