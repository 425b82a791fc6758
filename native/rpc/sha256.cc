#include "rpc/sha256.h"

#include <algorithm>
#include <cstring>

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#include <immintrin.h>
#define DROID_SHA256_X86
#elif defined(__aarch64__) && (defined(__ARM_FEATURE_SHA2) || !defined(__clang__) || __clang_major__ >= 16)
// Older clangs declare the intrinsics only where the whole file may use them.
#include <arm_neon.h>
#define DROID_SHA256_ARM
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

namespace droid::rpc {

namespace {

constexpr uint32_t initial_state[8] = {
    0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19,
};

alignas(16) constexpr uint32_t round_constants[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

uint32_t rotate_right(uint32_t x, int n) {
    return (x >> n) | (x << (32 - n));
}

uint32_t load_big_endian(const uint8_t * p) {
    return uint32_t(p[0]) << 24 | uint32_t(p[1]) << 16 | uint32_t(p[2]) << 8 | uint32_t(p[3]);
}

#if defined(DROID_SHA256_X86)

__attribute__((target("sha,sse4.1,ssse3"))) void sha256_blocks_x86(uint32_t * state, const uint8_t * data,
                                                                   size_t blocks) {
    const __m128i swap = _mm_set_epi64x(0x0c0d0e0f08090a0bll, 0x0405060700010203ll);
    // The instructions want the state as (a b e f) and (c d g h).
    const __m128i abcd = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(state)), 0xb1);
    const __m128i efgh = _mm_shuffle_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(state + 4)), 0x1b);
    __m128i abef = _mm_alignr_epi8(abcd, efgh, 8);
    __m128i cdgh = _mm_blend_epi16(efgh, abcd, 0xf0);

    for (; blocks > 0; blocks--, data += 64) {
        const __m128i abef_before = abef;
        const __m128i cdgh_before = cdgh;
        __m128i w[4];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i < 4) {
                w[i] = _mm_shuffle_epi8(_mm_loadu_si128(reinterpret_cast<const __m128i *>(data + 16 * i)), swap);
            } else {
                const __m128i w7 = _mm_alignr_epi8(w[(i + 3) & 3], w[(i + 2) & 3], 4);
                const __m128i sum = _mm_add_epi32(_mm_sha256msg1_epu32(w[i & 3], w[(i + 1) & 3]), w7);
                w[i & 3] = _mm_sha256msg2_epu32(sum, w[(i + 3) & 3]);
            }
            const __m128i k = _mm_load_si128(reinterpret_cast<const __m128i *>(round_constants + 4 * i));
            const __m128i wk = _mm_add_epi32(w[i & 3], k);
            cdgh = _mm_sha256rnds2_epu32(cdgh, abef, wk);
            abef = _mm_sha256rnds2_epu32(abef, cdgh, _mm_shuffle_epi32(wk, 0x0e));
        }
        abef = _mm_add_epi32(abef, abef_before);
        cdgh = _mm_add_epi32(cdgh, cdgh_before);
    }

    const __m128i feba = _mm_shuffle_epi32(abef, 0x1b);
    const __m128i dchg = _mm_shuffle_epi32(cdgh, 0xb1);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state), _mm_blend_epi16(feba, dchg, 0xf0));
    _mm_storeu_si128(reinterpret_cast<__m128i *>(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

bool has_x86_sha() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_SSSE3) || !(c & bit_SSE4_1)) return false;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (b & (1u << 29));
}

#elif defined(DROID_SHA256_ARM)

#if defined(__ARM_FEATURE_SHA2)
#define DROID_SHA256_TARGET
#elif defined(__clang__)
#define DROID_SHA256_TARGET __attribute__((target("sha2")))
#else
#define DROID_SHA256_TARGET __attribute__((target("+crypto")))
#endif

DROID_SHA256_TARGET void sha256_blocks_arm(uint32_t * state, const uint8_t * data, size_t blocks) {
    uint32x4_t abcd = vld1q_u32(state);
    uint32x4_t efgh = vld1q_u32(state + 4);

    for (; blocks > 0; blocks--, data += 64) {
        const uint32x4_t abcd_before = abcd;
        const uint32x4_t efgh_before = efgh;
        uint32x4_t w[4];
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++) {
            if (i < 4) {
                w[i] = vreinterpretq_u32_u8(vrev32q_u8(vld1q_u8(data + 16 * i)));
            } else {
                const uint32x4_t sum = vsha256su0q_u32(w[i & 3], w[(i + 1) & 3]);
                w[i & 3] = vsha256su1q_u32(sum, w[(i + 2) & 3], w[(i + 3) & 3]);
            }
            const uint32x4_t wk = vaddq_u32(w[i & 3], vld1q_u32(round_constants + 4 * i));
            const uint32x4_t abcd_now = abcd;
            abcd = vsha256hq_u32(abcd, efgh, wk);
            efgh = vsha256h2q_u32(efgh, abcd_now, wk);
        }
        abcd = vaddq_u32(abcd, abcd_before);
        efgh = vaddq_u32(efgh, efgh_before);
    }

    vst1q_u32(state, abcd);
    vst1q_u32(state + 4, efgh);
}

bool has_arm_sha2() {
#if defined(__APPLE__) || defined(__ARM_FEATURE_SHA2)
    return true;
#elif defined(__linux__)
    constexpr unsigned long sha2 = 1ul << 6;  // HWCAP_SHA2
    return getauxval(AT_HWCAP) & sha2;
#else
    return false;
#endif
}

#endif

}  // namespace

namespace sha256_detail {

void portable(uint32_t * state, const uint8_t * data, size_t blocks) {
    for (; blocks > 0; blocks--, data += 64) {
        uint32_t w[64];
        for (int i = 0; i < 16; i++) w[i] = load_big_endian(data + 4 * i);
        for (int i = 16; i < 64; i++) {
            const uint32_t s0 = rotate_right(w[i - 15], 7) ^ rotate_right(w[i - 15], 18) ^ (w[i - 15] >> 3);
            const uint32_t s1 = rotate_right(w[i - 2], 17) ^ rotate_right(w[i - 2], 19) ^ (w[i - 2] >> 10);
            w[i] = w[i - 16] + s0 + w[i - 7] + s1;
        }
        uint32_t a = state[0], b = state[1], c = state[2], d = state[3];
        uint32_t e = state[4], f = state[5], g = state[6], h = state[7];
        for (int i = 0; i < 64; i++) {
            const uint32_t s1 = rotate_right(e, 6) ^ rotate_right(e, 11) ^ rotate_right(e, 25);
            const uint32_t t1 = h + s1 + ((e & f) ^ (~e & g)) + round_constants[i] + w[i];
            const uint32_t s0 = rotate_right(a, 2) ^ rotate_right(a, 13) ^ rotate_right(a, 22);
            const uint32_t t2 = s0 + ((a & b) ^ (a & c) ^ (b & c));
            h = g;
            g = f;
            f = e;
            e = d + t1;
            d = c;
            c = b;
            b = a;
            a = t1 + t2;
        }
        state[0] += a;
        state[1] += b;
        state[2] += c;
        state[3] += d;
        state[4] += e;
        state[5] += f;
        state[6] += g;
        state[7] += h;
    }
}

void (*accelerated())(uint32_t * state, const uint8_t * data, size_t blocks) {
#if defined(DROID_SHA256_X86)
    if (has_x86_sha()) return sha256_blocks_x86;
#elif defined(DROID_SHA256_ARM)
    if (has_arm_sha2()) return sha256_blocks_arm;
#endif
    return nullptr;
}

}  // namespace sha256_detail

namespace {

void compress(uint32_t * state, const uint8_t * data, size_t blocks) {
    static const auto best = sha256_detail::accelerated() ? sha256_detail::accelerated() : sha256_detail::portable;
    best(state, data, blocks);
}

}  // namespace

Sha256Hasher::Sha256Hasher() {
    std::copy(std::begin(initial_state), std::end(initial_state), state_);
}

void Sha256Hasher::update(const void * data, size_t size) {
    const uint8_t * bytes = static_cast<const uint8_t *>(data);
    const size_t held = bytes_ % sizeof(block_);
    bytes_ += size;
    if (held > 0) {
        const size_t taken = std::min(size, sizeof(block_) - held);
        if (taken > 0) std::memcpy(block_ + held, bytes, taken);
        if (held + taken < sizeof(block_)) return;
        compress(state_, block_, 1);
        bytes += taken;
        size -= taken;
    }
    if (size >= sizeof(block_)) compress(state_, bytes, size / sizeof(block_));
    const size_t rest = size % sizeof(block_);
    if (rest > 0) std::memcpy(block_, bytes + (size - rest), rest);
}

Sha256 Sha256Hasher::finish() {
    const uint64_t bits = bytes_ * 8;
    size_t held = bytes_ % sizeof(block_);
    block_[held++] = 0x80;
    if (held > sizeof(block_) - 8) {
        std::memset(block_ + held, 0, sizeof(block_) - held);
        compress(state_, block_, 1);
        held = 0;
    }
    std::memset(block_ + held, 0, sizeof(block_) - 8 - held);
    for (int i = 0; i < 8; i++) block_[sizeof(block_) - 1 - i] = uint8_t(bits >> (8 * i));
    compress(state_, block_, 1);

    Sha256 hash;
    for (int i = 0; i < 32; i++) hash[i] = uint8_t(state_[i / 4] >> (24 - 8 * (i % 4)));
    return hash;
}

Sha256 sha256(const void * data, size_t size) {
    Sha256Hasher hasher;
    hasher.update(data, size);
    return hasher.finish();
}

std::string to_hex(const Sha256 & hash) {
    constexpr char digits[] = "0123456789abcdef";
    std::string text;
    text.reserve(2 * hash.size());
    for (const uint8_t byte : hash) {
        text += digits[byte >> 4];
        text += digits[byte & 15];
    }
    return text;
}

bool from_hex(const std::string & text, Sha256 & hash) {
    if (text.size() != 2 * hash.size()) return false;
    const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1; };
    Sha256 read;
    for (size_t i = 0; i < hash.size(); i++) {
        const int high = digit(text[2 * i]);
        const int low = digit(text[2 * i + 1]);
        if (high < 0 || low < 0) return false;
        read[i] = uint8_t(high << 4 | low);
    }
    hash = read;
    return true;
}

size_t Sha256Hash::operator()(const Sha256 & hash) const {
    size_t first;
    std::memcpy(&first, hash.data(), sizeof(first));
    return first;
}

}  // namespace droid::rpc
