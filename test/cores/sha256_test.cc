#include "rpc/sha256.h"

#include <algorithm>
#include <string>
#include <vector>

#include "check.h"

using namespace droid::rpc;

namespace {

std::string hash_of(const std::string & text) {
    return to_hex(sha256(text.data(), text.size()));
}

std::vector<uint8_t> pseudo_random(size_t size) {
    std::vector<uint8_t> bytes(size);
    uint32_t x = 12345;
    for (uint8_t & byte : bytes) {
        x = x * 1664525 + 1013904223;
        byte = uint8_t(x >> 24);
    }
    return bytes;
}

}  // namespace

// FIPS 180-4's examples, and NIST's answers for messages around the length of a block.
TEST(sha256_knows_the_standards_examples) {
    CHECK_EQUAL(hash_of(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    CHECK_EQUAL(hash_of("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    CHECK_EQUAL(hash_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
                "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
    CHECK_EQUAL(
        hash_of("abcdefghbcdefghicdefghijdefghijkefghijklfghijklmghijklmnhijklmnoijklmnopjklmnopqklmnopqrlmnopqrs"
                "mnopqrstnopqrstu"),
        "cf5b16a778af8380036ce59e7b0492370b249b11e8f07a51afac45037afee9d1");
    CHECK_EQUAL(hash_of(std::string(55, '\0')), "02779466cdec163811d078815c633f21901413081449002f24aa3e80f0b88ef7");
    CHECK_EQUAL(hash_of(std::string(56, '\0')), "d4817aa5497628e7c77e6b606107042bbba3130888c5f47a375e6179be789fbb");
    CHECK_EQUAL(hash_of(std::string(64, '\0')), "f5a5fd42d16a20302798ef6ed309979b43003d2320d9f0e8ea9831a92759fb4b");
}

TEST(sha256_hashes_a_million_letters) {
    const std::string expected = "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0";
    CHECK_EQUAL(hash_of(std::string(1000000, 'a')), expected);
    Sha256Hasher hasher;
    const std::string piece(997, 'a');
    for (size_t left = 1000000; left > 0;) {
        const size_t size = std::min(left, piece.size());
        hasher.update(piece.data(), size);
        left -= size;
    }
    CHECK_EQUAL(to_hex(hasher.finish()), expected);
}

TEST(sha256_does_not_depend_on_how_data_is_split) {
    const std::vector<uint8_t> data = pseudo_random(300);
    for (size_t size = 0; size <= data.size(); size++) {
        const Sha256 whole = sha256(data.data(), size);
        for (size_t split = 0; split <= size; split++) {
            Sha256Hasher hasher;
            hasher.update(data.data(), split);
            hasher.update(data.data() + split, size - split);
            CHECK(hasher.finish() == whole);
        }
        Sha256Hasher byte_by_byte;
        for (size_t i = 0; i < size; i++) byte_by_byte.update(data.data() + i, 1);
        CHECK(byte_by_byte.finish() == whole);
    }
}

TEST(sha256_is_the_same_with_and_without_the_processors_instructions) {
    const auto accelerated = sha256_detail::accelerated();
    if (!accelerated) return;
    const std::vector<uint8_t> data = pseudo_random(64 * 40 + 7);
    for (size_t offset = 0; offset < 8; offset++) {
        for (size_t blocks = 0; offset + 64 * blocks <= data.size(); blocks++) {
            uint32_t one[8] = {1, 2, 3, 4, 5, 6, 7, 8};
            uint32_t other[8] = {1, 2, 3, 4, 5, 6, 7, 8};
            accelerated(one, data.data() + offset, blocks);
            sha256_detail::portable(other, data.data() + offset, blocks);
            CHECK(std::equal(one, one + 8, other));
        }
    }
}

// Where the accelerated code is what sha256() uses, the examples above have not seen the other.
TEST(sha256_portable_code_knows_an_example) {
    uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                         0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    uint8_t block[64] = {'a', 'b', 'c', 0x80};
    block[63] = 24;
    sha256_detail::portable(state, block, 1);
    CHECK_EQUAL(state[0], 0xba7816bfu);
    CHECK_EQUAL(state[7], 0xf20015adu);
}

TEST(sha256_hexadecimal) {
    const Sha256 hash = sha256("abc", 3);
    Sha256 read;
    CHECK(from_hex(to_hex(hash), read));
    CHECK(read == hash);
    const std::string text = to_hex(hash);
    CHECK(!from_hex("", read));
    CHECK(!from_hex(text.substr(1), read));
    CHECK(!from_hex(text + "0", read));
    CHECK(!from_hex("BA" + text.substr(2), read));
    CHECK(!from_hex("g0" + text.substr(2), read));
    CHECK(!from_hex(text.substr(0, 62) + "0/", read));
    CHECK(read == hash);
}
