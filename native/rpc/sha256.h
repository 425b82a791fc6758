#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string>

namespace droid::rpc {

using Sha256 = std::array<uint8_t, 32>;

// SHA-256 (FIPS 180-4), with the processor's own instructions where it has them (x86 SHA, Armv8 SHA2).
class Sha256Hasher {
  public:
    Sha256Hasher();
    void update(const void * data, size_t size);
    Sha256 finish();  // once

  private:
    uint32_t state_[8];
    uint64_t bytes_ = 0;
    uint8_t block_[64];
};

Sha256 sha256(const void * data, size_t size);

std::string to_hex(const Sha256 & hash);
// False unless text is 64 lower-case hexadecimal digits.
bool from_hex(const std::string & text, Sha256 & hash);

// For std::unordered_map: the first bytes are as good as any.
struct Sha256Hash {
    size_t operator()(const Sha256 & hash) const;
};

// The two ways to hash whole blocks of 64 bytes; tests compare them.
namespace sha256_detail {

void portable(uint32_t * state, const uint8_t * data, size_t blocks);

// Null where the processor has no instructions for it.
void (*accelerated())(uint32_t * state, const uint8_t * data, size_t blocks);

}  // namespace sha256_detail

}  // namespace droid::rpc
