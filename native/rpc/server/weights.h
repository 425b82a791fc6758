#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "ggml-backend.h"
#include "rpc/server/memory.h"
#include "rpc/server/server.h"
#include "rpc/server/weight_cache.h"
#include "rpc/sha256.h"

namespace droid::rpc {

class WeightStore;

// A weight in the layout that this processor's kernels like best, which is readable by nothing else.
struct RepackedWeight {
    RepackedWeight() = default;
    ~RepackedWeight() { ggml_backend_buffer_free(buffer); }
    RepackedWeight(const RepackedWeight &) = delete;
    RepackedWeight & operator=(const RepackedWeight &) = delete;

    bool is(const ggml_tensor & tensor) const;  // of that type and shape

    ggml_type type = GGML_TYPE_F32;
    int64_t ne[GGML_MAX_DIMS] = {};
    ggml_backend_buffer_t buffer = nullptr;
    void * data = nullptr;
    void * extra = nullptr;
};

// The data of a tensor that is known by its hash and that nobody writes to: one copy for all clients.
//
// It is plain at first. Repacking replaces the plain data for those who ask from then on; who took either before holds
// it, so that a graph which computes at that moment is not disturbed.
class Weight {
  public:
    struct State {
        std::shared_ptr<const uint8_t> plain;  // null once it was repacked
        std::shared_ptr<const RepackedWeight> repacked;
    };

    Weight(WeightStore & store, const Sha256 & hash, uint64_t size, std::shared_ptr<const uint8_t> data);
    ~Weight();
    Weight(const Weight &) = delete;
    Weight & operator=(const Weight &) = delete;

    const Sha256 & hash() const { return hash_; }
    uint64_t size() const { return size_; }
    State state() const;
    std::shared_ptr<const uint8_t> plain(bool keep = false);  // WeightStore::plain()
    uint64_t epoch() const { return epoch_; }                 // another one after each change of the state

    // Takes over what a client's buffer had been charged for the same bytes; not needed when it is charged already.
    void pay(Charge charge);
    // Gives back what it had been charged; false when that was nothing.
    bool unpay();

  private:
    friend class WeightStore;

    WeightStore & store_;
    const Sha256 hash_;
    const uint64_t size_;
    mutable std::mutex mutex_;
    State state_;
    Charge charge_;
    Charge restored_;  // for the plain data beside the repacked one
    bool paid_ = false;
    bool keep_plain_ = false;
    std::atomic<uint64_t> epoch_{0};
};

// The weights of all clients, and the way to repack them. Any thread may call. It outlives the weights.
class WeightStore {
  public:
    // cache may be null.
    WeightStore(Budget & budget, WeightCache * cache, ServerCounters & counters);
    ~WeightStore();
    WeightStore(const WeightStore &) = delete;
    WeightStore & operator=(const WeightStore &) = delete;

    WeightCache * cache() const { return cache_; }

    // Whether there is any, in memory or in the cache.
    bool holds_any();

    // In memory; null when it is not.
    std::shared_ptr<Weight> find(const Sha256 & hash, uint64_t size);

    // In memory or read from the cache, where the budget leaves room for it; null when it is in neither. What was read
    // is charged.
    std::shared_ptr<Weight> find_or_load(const Sha256 & hash, uint64_t size);

    // Charges a weight that nobody has paid for; false when the budget has not as much.
    bool pay(Weight & weight);

    // Data that has that hash; when the weight is in memory already, that one. Also goes to the cache.
    std::shared_ptr<Weight> add(const Sha256 & hash, uint64_t size, std::shared_ptr<const uint8_t> data);

    // The plain data, read from the cache when the weight was repacked. Throws Refusal when that is not possible; the
    // weight is then forgotten, so that the client that comes back and sends it again gets a plain one.
    // keep: it will be needed again, so nobody may repack it any more.
    std::shared_ptr<const uint8_t> plain(Weight & weight, bool keep);

    // Has src[0] of these nodes, which is the whole weight in the same type and shape in each of them, repacked if ggml
    // would do that for a model of its own and if all of the nodes can use it. False leaves it as it was.
    bool repack(Weight & weight, const std::vector<ggml_tensor *> & nodes);

    // Whether a node can compute with its src[0] in that form.
    bool supports(ggml_tensor & node, const RepackedWeight & repacked) const;

  private:
    friend class Weight;

    bool supports(ggml_tensor & node, ggml_backend_buffer_t buffer) const;
    std::shared_ptr<RepackedWeight> make_repacked(const ggml_tensor & tensor, const uint8_t * data,
                                                  ggml_backend_buffer_type_t type) const;
    void gone(const Weight & weight);
    void forget_repacked();

    Budget & budget_;
    WeightCache * const cache_;
    ServerCounters & counters_;
    ggml_backend_dev_t cpu_;
    std::vector<ggml_backend_buffer_t> buffer_types_;  // an empty buffer of each that ggml may repack into
    std::mutex repacking_;                             // one at a time: each needs the memory of one more tensor
    std::mutex mutex_;
    std::unordered_map<Sha256, std::weak_ptr<Weight>, Sha256Hash> weights_;
    std::unordered_set<Sha256, Sha256Hash> keep_plain_;
};

}  // namespace droid::rpc
