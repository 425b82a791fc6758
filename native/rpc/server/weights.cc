#include "rpc/server/weights.h"

#include <algorithm>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "rpc/server/refusal.h"

namespace droid::rpc {

namespace {

// A client can only add to the list by breaking its own session.
constexpr size_t max_keep_plain = 1 << 16;

}  // namespace

bool RepackedWeight::is(const ggml_tensor & tensor) const {
    return type == tensor.type && std::equal(ne, ne + GGML_MAX_DIMS, tensor.ne);
}

Weight::Weight(WeightStore & store, const Sha256 & hash, uint64_t size, std::shared_ptr<const uint8_t> data)
    : store_(store), hash_(hash), size_(size) {
    state_.plain = std::move(data);
    store_.counters_.bytes_weights += size_;
}

Weight::~Weight() {
    store_.counters_.bytes_weights -= size_;
    if (state_.repacked) store_.counters_.bytes_repacked -= size_;
    store_.gone(*this);
}

Weight::State Weight::state() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return state_;
}

std::shared_ptr<const uint8_t> Weight::plain(bool keep) {
    return store_.plain(*this, keep);
}

void Weight::pay(Charge charge) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (paid_) return;
    paid_ = true;
    charge_ = std::move(charge);
}

bool Weight::unpay() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!paid_ || charge_.bytes() == 0) return false;
    paid_ = false;
    charge_.clear();
    return true;
}

WeightStore::WeightStore(Budget & budget, WeightCache * cache, ServerCounters & counters)
    : budget_(budget), cache_(cache), counters_(counters), cpu_(ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0)) {
    const auto extra_types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    if (!extra_types) return;
    for (ggml_backend_buffer_type_t * type = extra_types(cpu_); type && *type; type++) {
        // Without a context it is plain memory of another kind, such as HBM, about which ggml cannot be asked.
        if ((*type)->context) buffer_types_.push_back(ggml_backend_buft_alloc_buffer(*type, 0));
    }
}

WeightStore::~WeightStore() {
    for (ggml_backend_buffer_t buffer : buffer_types_) ggml_backend_buffer_free(buffer);
}

bool WeightStore::holds_any() {
    if (cache_ && cache_->counters().files > 0) return true;
    std::lock_guard<std::mutex> lock(mutex_);
    return !weights_.empty();
}

std::shared_ptr<Weight> WeightStore::find(const Sha256 & hash, uint64_t size) {
    std::shared_ptr<Weight> weight;  // goes after the lock, which its destructor takes, too
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = weights_.find(hash);
    if (found != weights_.end()) weight = found->second.lock();
    return weight && weight->size() == size ? weight : nullptr;
}

std::shared_ptr<Weight> WeightStore::find_or_load(const Sha256 & hash, uint64_t size) {
    if (auto weight = find(hash, size)) return weight;
    if (!cache_ || size == 0 || !cache_->contains(hash, size)) return nullptr;
    Charge charge = Charge::take(budget_, size);
    if (charge.bytes() == 0) return nullptr;
    std::shared_ptr<uint8_t> data = allocate_aligned(size);
    if (!data || !cache_->read(hash, data.get(), size)) return nullptr;
    std::shared_ptr<Weight> weight = add(hash, size, std::move(data));
    weight->pay(std::move(charge));
    return weight;
}

bool WeightStore::pay(Weight & weight) {
    Charge charge = Charge::take(budget_, weight.size());
    if (charge.bytes() == 0) return false;
    weight.pay(std::move(charge));
    return true;
}

std::shared_ptr<Weight> WeightStore::add(const Sha256 & hash, uint64_t size, std::shared_ptr<const uint8_t> data) {
    const uint8_t * bytes = data.get();
    auto created = std::make_shared<Weight>(*this, hash, size, std::move(data));
    std::shared_ptr<Weight> weight;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        std::weak_ptr<Weight> & entry = weights_[hash];
        weight = entry.lock();
        if (!weight) {
            created->keep_plain_ = keep_plain_.count(hash) > 0;
            entry = created;
        }
    }
    if (cache_ && !cache_->contains(hash, size)) cache_->write(hash, bytes, size);
    return weight ? weight : created;
}

void WeightStore::gone(const Weight & weight) {
    std::lock_guard<std::mutex> lock(mutex_);
    const auto found = weights_.find(weight.hash());
    if (found != weights_.end() && found->second.expired()) weights_.erase(found);
}

// One by one, a client would have to come back for each weight of a model that another one had repacked in its own way.
void WeightStore::forget_repacked() {
    std::vector<std::shared_ptr<Weight>> alive;  // they go after the lock, which their destructors take, too
    std::lock_guard<std::mutex> lock(mutex_);
    if (keep_plain_.size() >= max_keep_plain) keep_plain_.clear();
    for (auto entry = weights_.begin(); entry != weights_.end();) {
        const std::shared_ptr<Weight> & weight = alive.emplace_back(entry->second.lock());
        const bool repacked = weight && weight->state().repacked && !weight->state().plain;
        if (repacked) keep_plain_.insert(entry->first);
        entry = repacked ? weights_.erase(entry) : std::next(entry);
    }
}

std::shared_ptr<const uint8_t> WeightStore::plain(Weight & weight, bool keep) {
    {
        std::lock_guard<std::mutex> lock(weight.mutex_);
        weight.keep_plain_ = weight.keep_plain_ || keep;
        if (weight.state_.plain) return weight.state_.plain;
        Charge charge = Charge::take(budget_, weight.size_);
        std::shared_ptr<uint8_t> data = charge.bytes() && cache_ ? allocate_aligned(weight.size_) : nullptr;
        if (data && cache_->read(weight.hash_, data.get(), weight.size_)) {
            weight.restored_ = std::move(charge);
            weight.state_.plain = std::move(data);
            weight.epoch_++;
            return weight.state_.plain;
        }
    }
    forget_repacked();
    throw Refusal("the weight is repacked for matrix multiplication and cannot be used in another way");
}

bool WeightStore::supports(ggml_tensor & node, ggml_backend_buffer_t buffer) const {
    ggml_tensor & weight = *node.src[0];
    const ggml_tensor & input = *node.src[1];
    // What the repacked kernels assert beyond what the plain ones do.
    if (input.type != GGML_TYPE_F32 || input.nb[0] != sizeof(float) || node.nb[0] != sizeof(float)) return false;
    if (node.nb[0] > node.nb[1] || node.nb[1] > node.nb[2] || node.nb[2] > node.nb[3]) return false;
    if (weight.ne[3] != 1 || input.ne[3] != 1 || node.ne[3] != 1) return false;
    // They quantize four rows of the input at a time and take them for adjacent.
    if (node.op == GGML_OP_MUL_MAT && input.ne[1] > 1 && input.nb[1] != input.ne[0] * sizeof(float)) return false;
    ggml_backend_buffer_t const before = weight.buffer;
    weight.buffer = buffer;
    const bool supported = ggml_backend_dev_supports_op(cpu_, &node);
    weight.buffer = before;
    return supported;
}

bool WeightStore::supports(ggml_tensor & node, const RepackedWeight & repacked) const {
    return repacked.is(*node.src[0]) && supports(node, repacked.buffer);
}

std::shared_ptr<RepackedWeight> WeightStore::make_repacked(const ggml_tensor & tensor, const uint8_t * data,
                                                           ggml_backend_buffer_type_t type) const {
    ggml_tensor target = {};
    target.type = tensor.type;
    std::copy(tensor.ne, tensor.ne + GGML_MAX_DIMS, target.ne);
    std::copy(tensor.nb, tensor.nb + GGML_MAX_DIMS, target.nb);

    auto repacked = std::make_shared<RepackedWeight>();
    repacked->type = tensor.type;
    std::copy(tensor.ne, tensor.ne + GGML_MAX_DIMS, repacked->ne);
    repacked->buffer = ggml_backend_buft_alloc_buffer(type, ggml_backend_buft_get_alloc_size(type, &target));
    if (!repacked->buffer) return nullptr;
    repacked->data = ggml_backend_buffer_get_base(repacked->buffer);
    ggml_backend_buffer_set_usage(repacked->buffer, GGML_BACKEND_BUFFER_USAGE_WEIGHTS);
    target.buffer = repacked->buffer;
    target.data = repacked->data;
    if (ggml_backend_buffer_init_tensor(repacked->buffer, &target) != GGML_STATUS_SUCCESS) return nullptr;
    ggml_backend_tensor_set(&target, data, 0, ggml_nbytes(&target));
    repacked->extra = target.extra;
    return repacked;
}

bool WeightStore::repack(Weight & weight, const std::vector<ggml_tensor *> & nodes) {
    if (nodes.empty()) return false;
    const auto all_support = [&](ggml_backend_buffer_t buffer) {
        return std::all_of(nodes.begin(), nodes.end(), [&](ggml_tensor * node) { return supports(*node, buffer); });
    };
    const auto suitable = std::find_if(buffer_types_.begin(), buffer_types_.end(), all_support);
    if (suitable == buffer_types_.end()) return false;

    std::lock_guard<std::mutex> turn(repacking_);
    Weight::State before;
    {
        std::lock_guard<std::mutex> lock(weight.mutex_);
        before = weight.state_;
        if (!before.repacked && weight.keep_plain_) return false;
    }
    if (before.repacked) return before.repacked->is(*nodes.front()->src[0]) && all_support(before.repacked->buffer);
    const Charge meanwhile = Charge::take(budget_, weight.size_);
    if (!meanwhile.bytes()) return false;
    auto repacked = make_repacked(*nodes.front()->src[0], before.plain.get(), (*suitable)->buft);
    if (!repacked) return false;
    std::lock_guard<std::mutex> lock(weight.mutex_);
    if (weight.keep_plain_) return false;  // somebody else came first
    weight.state_.repacked = std::move(repacked);
    weight.state_.plain.reset();
    weight.epoch_++;
    counters_.bytes_repacked += weight.size_;
    return true;
}

}  // namespace droid::rpc
