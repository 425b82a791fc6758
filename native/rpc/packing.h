#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace droid::rpc {

// A compressed form for what is sent between graphs: attention masks, which are runs of two values, and the tensors of
// a graph, which are like each other. In the way of LZ77, repeated until there is no more:
//
//   n varint | n bytes as they are | m varint | unless that was all: distance varint, m bytes again from that far back
//
// A varint has seven bits a byte, the lowest first; the highest bit says that more follow.

// Replaces packed by the packed form of data, or returns false when that is not smaller than limit bytes.
// size is at most 4 GiB - 1.
bool pack(const void * data, size_t size, size_t limit, std::vector<uint8_t> & packed);

// False unless packed holds exactly size bytes. Reads and writes within the two ranges whatever it is given.
bool unpack(const uint8_t * packed, size_t packed_size, uint8_t * data, size_t size);

}  // namespace droid::rpc
