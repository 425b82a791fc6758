#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <unordered_map>
#include <vector>

#include "rpc/sha256.h"

namespace droid::rpc {

// Where a tensor's data lies in a model file.
struct TensorInFile {
    std::string name;
    std::string path;  // of the file; a model may be split over several
    uint64_t offset = 0;
    uint64_t size = 0;
};

// The hashes of a model's weights, by tensor name.
struct Manifest {
    struct Entry {
        Sha256 hash;
        uint64_t size;
    };
    std::unordered_map<std::string, Entry> entries;
};

// Hashes the data of tensors with that many threads. on_progress gets bytes done of all, from any of them; it returns
// false to stop, and then the manifest is incomplete. A tensor that cannot be read is left out: it is hashed again when
// it is sent. Throws what on_progress throws, and std::bad_alloc.
Manifest make_manifest(const std::vector<TensorInFile> & tensors, int threads,
                       const std::function<bool(uint64_t done, uint64_t total)> & on_progress = {});

}  // namespace droid::rpc
