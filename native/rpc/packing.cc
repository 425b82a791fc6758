#include "rpc/packing.h"

#include <algorithm>
#include <array>
#include <cstring>

namespace droid::rpc {

namespace {

constexpr int table_bits = 13;
constexpr size_t probe_size = 5;  // bytes that are looked up; what a shorter repetition would save it costs again
// Data in which nothing repeats is passed over in longer and longer strides.
constexpr size_t misses_per_stride = 64;

uint64_t load_probe(const uint8_t * data) {
    uint32_t low;
    std::memcpy(&low, data, sizeof low);
    return low | static_cast<uint64_t>(data[4]) << 32;
}

size_t slot_of(uint64_t probe) {
    return static_cast<size_t>((probe * 0x9e3779b97f4a7c15ull) >> (64 - table_bits));
}

size_t common_bytes(const uint8_t * one, const uint8_t * other, size_t most) {
    size_t n = 0;
    for (uint64_t a, b; n + sizeof a <= most; n += sizeof a) {
        std::memcpy(&a, one + n, sizeof a);
        std::memcpy(&b, other + n, sizeof b);
        if (a != b) break;
    }
    while (n < most && one[n] == other[n]) n++;
    return n;
}

void put_varint(std::vector<uint8_t> & packed, size_t value) {
    for (; value >= 0x80; value >>= 7) packed.push_back(static_cast<uint8_t>(value | 0x80));
    packed.push_back(static_cast<uint8_t>(value));
}

struct Reader {
    const uint8_t * next;
    const uint8_t * end;

    size_t left() const { return static_cast<size_t>(end - next); }

    bool varint(size_t & value) {
        uint64_t result = 0;
        for (int shift = 0; shift < 35; shift += 7) {
            if (next == end) return false;
            const uint8_t byte = *next++;
            result |= static_cast<uint64_t>(byte & 0x7f) << shift;
            if (byte & 0x80) continue;
            value = static_cast<size_t>(result);
            return result <= UINT32_MAX;
        }
        return false;
    }
};

}  // namespace

bool pack(const void * data, size_t size, size_t limit, std::vector<uint8_t> & packed) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    std::array<uint32_t, size_t{1} << table_bits> seen;  // where such bytes were last, plus one
    seen.fill(0);
    packed.clear();
    size_t written = 0;  // of data
    size_t at = 0;
    size_t misses = 0;
    while (at + probe_size <= size) {
        const uint64_t probe = load_probe(bytes + at);
        uint32_t & last = seen[slot_of(probe)];
        const size_t from = last;
        last = static_cast<uint32_t>(at + 1);
        if (from == 0 || load_probe(bytes + from - 1) != probe) {
            at += 1 + misses++ / misses_per_stride;
            if (at - written >= limit) return false;
            continue;
        }
        const size_t distance = at - (from - 1);
        const size_t length = probe_size + common_bytes(bytes + at + probe_size, bytes + at + probe_size - distance,
                                                        size - at - probe_size);
        put_varint(packed, at - written);
        packed.insert(packed.end(), bytes + written, bytes + at);
        put_varint(packed, length);
        put_varint(packed, distance);
        at += length;
        written = at;
        misses = 0;
        if (packed.size() >= limit) return false;
    }
    if (written < size) {
        put_varint(packed, size - written);
        packed.insert(packed.end(), bytes + written, bytes + size);
        put_varint(packed, 0);
    }
    return packed.size() < limit;
}

bool unpack(const uint8_t * packed, size_t packed_size, uint8_t * data, size_t size) {
    Reader reader = {packed, packed + packed_size};
    size_t done = 0;
    while (done < size) {
        size_t literals, repeated, distance;
        if (!reader.varint(literals) || literals > reader.left() || literals > size - done) return false;
        if (literals > 0) std::memcpy(data + done, reader.next, literals);
        reader.next += literals;
        done += literals;
        if (!reader.varint(repeated) || repeated > size - done) return false;
        if (repeated == 0) {
            // Nothing at all would be a message of any length that says nothing.
            if (literals == 0) return false;
            continue;
        }
        if (!reader.varint(distance) || distance == 0 || distance > done) return false;
        while (repeated > 0) {
            // What was repeated once is a repetition of twice the distance.
            const size_t n = std::min(repeated, distance);
            std::memcpy(data + done, data + done - distance, n);
            done += n;
            repeated -= n;
            distance += n;
        }
    }
    return reader.left() == 0;
}

}  // namespace droid::rpc
