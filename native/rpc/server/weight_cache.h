#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "rpc/sha256.h"

namespace droid::rpc {

struct WeightCacheCounters {
    uint64_t files = 0;
    uint64_t bytes = 0;  // on disk, in blocks of 4 KiB, with the FNV hashes' files
    uint64_t hits = 0;
    uint64_t misses = 0;
    uint64_t evictions = 0;
    uint64_t damaged = 0;  // found with the wrong content, and removed
};

// Tensor data on disk under its SHA-256: <dir>/v1/<first two digits>/<all 64 digits>, and <dir>/v1/fnv/<16 digits> for
// what an FNV-1a hash stands for. Any thread may call, and several processes may share a directory. The cache is an
// optimisation: a full disk or a file that vanishes never fails the caller, it is said once through on_problem, which
// must not call the cache.
//
// Last use is a file's mtime. Processes see each other's files when they scan the directory: when the limit is reached,
// and each time they have written an eighth of it, which is how far above the limit each may get.
class WeightCache {
  public:
    // limit: bytes on disk; above it the least recently used files go. 0 takes half of what is free on the disk plus
    // what the cache already holds. Makes dir (for its owner only), and removes what writes that were interrupted over
    // an hour ago left behind; another process may be at the younger ones.
    // Throws CodedError DROID_INVALID_ARGUMENT when dir is not a directory that can be written.
    WeightCache(std::string dir, uint64_t limit, std::function<void(const std::string & line)> on_problem = {});
    ~WeightCache();
    WeightCache(const WeightCache &) = delete;
    WeightCache & operator=(const WeightCache &) = delete;

    uint64_t limit() const;

    // Whether a file of that name and size is there; its content is checked by read(). Marks it as used, so that it
    // stays until it is read.
    bool contains(const Sha256 & hash, uint64_t size) const;

    // Fills data[0, size) and marks the entry as used. False when it is not there, has another size, or its content
    // does not have that hash (then it is removed); data is undefined then.
    bool read(const Sha256 & hash, void * data, uint64_t size);

    // Stores data, whose hash the caller has verified, by writing a temporary file and renaming it. Evicts first. Does
    // nothing when it is there already or larger than the limit.
    void write(const Sha256 & hash, const void * data, uint64_t size);

    // What upstream's 64-bit FNV-1a hash stood for when data with the cache flag came; for SET_TENSOR_HASH. Only while
    // the data is there, too, and never when two different data had the same hash.
    struct Entry {
        Sha256 hash;
        uint64_t size;
    };
    std::optional<Entry> find_fnv(uint64_t fnv) const;
    void add_fnv(uint64_t fnv, const Entry & entry);

    WeightCacheCounters counters() const;

  private:
    struct Impl;
    std::unique_ptr<Impl> impl_;
};

}  // namespace droid::rpc
