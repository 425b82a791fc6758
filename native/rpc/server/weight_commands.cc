#include "rpc/server/weight_commands.h"

#include <algorithm>

#include "rpc/server/refusal.h"
#include "rpc/server/tensor_check.h"

namespace droid::rpc {

namespace {

// A weight's copy begins at an aligned address, so its place in a buffer must as well.
constexpr uint64_t weight_alignment = 32;

Sha256 hash_of(const uint8_t (&bytes)[32]) {
    Sha256 hash;
    std::copy(std::begin(bytes), std::end(bytes), hash.begin());
    return hash;
}

struct Place {
    Buffer & buffer;
    uint64_t offset;
    uint64_t size;
};

Place place_of(const Tensor & wire, Buffers & buffers) {
    ggml_tensor tensor;
    const TensorRange range = read_tensor(wire, tensor);
    Buffer & buffer = buffers.at(wire.buffer);
    if (!is_whole(wire, tensor)) throw Refusal("its tensor is no weight: it is a view, computed or not contiguous");
    const uint64_t offset = buffer.offset_of(range.address, range.size);
    if (offset % weight_alignment != 0) throw Refusal("its tensor is not aligned");
    return {buffer, offset, range.size};
}

}  // namespace

WeightCommands::WeightCommands(MessageIo & io, Buffers & buffers, WeightStore & store, ServerCounters & counters)
    : io_(io), buffers_(buffers), store_(store), counters_(counters) {}

std::string WeightCommands::offer(const MessageIo::Header & header) {
    if (header.size % sizeof(Offer) != 0 || header.size / sizeof(Offer) > max_offers)
        throw MessageIo::wrong_size(header);
    std::vector<Offer> offers(header.size / sizeof(Offer));
    io_.read(offers.data(), header.size);
    std::vector<uint8_t> answers;
    answers.reserve(offers.size());
    size_t had = 0;
    for (const Offer & offer : offers) {
        const Sha256 hash = hash_of(offer.sha256);
        bool there = pinned_.count(hash) > 0 && pinned_[hash]->size() == offer.size;
        if (!there && offer.size <= buffers_.limit() - pinned_bytes_) {
            if (std::shared_ptr<Weight> weight = store_.find_or_load(hash, offer.size)) {
                there = pinned_.emplace(hash, std::move(weight)).second;
                if (there) pinned_bytes_ += offer.size;
            }
        }
        had += there;
        answers.push_back(there);
    }
    io_.answer_bytes(answers.data(), answers.size(), nullptr, 0);
    return "weights: " + std::to_string(offers.size()) + ", here: " + std::to_string(had);
}

std::shared_ptr<uint8_t> WeightCommands::receive_data(Buffer & buffer, uint64_t at, uint64_t size) {
    buffer.forget(at, size);  // whatever lay there goes before its successor needs memory
    std::shared_ptr<uint8_t> data = allocate_aligned(size);
    if (!data) throw out_of_memory("no memory left for a weight of " + std::to_string(size) + " bytes");
    io_.read(data.get(), size);
    counters_.bytes_weights_received += size;
    return data;
}

std::string WeightCommands::put(const MessageIo::Header & header) {
    uint64_t size = 0;
    const auto request = io_.request_before_data<WeightRequest>(header, size);
    const Place place = place_of(request.tensor, buffers_);
    if (size != place.size) throw MessageIo::wrong_size(header);
    std::shared_ptr<uint8_t> data = receive_data(place.buffer, place.offset, size);
    const Sha256 claimed = hash_of(request.sha256), hash = sha256(data.get(), size);
    if (claimed != Sha256{} && claimed != hash) throw Refusal("its data does not have the hash it came with");
    place.buffer.hold(place.offset, store_.add(hash, size, std::move(data)));
    return "hash: " + to_hex(hash) + ", size: " + std::to_string(size);
}

std::string WeightCommands::use(const MessageIo::Header & header) {
    const auto request = io_.request<WeightRequest>(header);
    const Place place = place_of(request.tensor, buffers_);
    const Sha256 hash = hash_of(request.sha256);
    std::shared_ptr<Weight> weight = store_.find(hash, place.size);
    if (const auto pinned = pinned_.find(hash); pinned != pinned_.end() && pinned->second->size() == place.size) {
        weight = pinned->second;
    }
    if (!weight) throw Refusal("this worker does not have the weight " + to_hex(hash));
    place.buffer.hold(place.offset, std::move(weight));
    counters_.bytes_weights_reused += place.size;
    return "hash: " + to_hex(hash) + ", size: " + std::to_string(place.size);
}

std::string WeightCommands::set_hash(const MessageIo::Header & header) {
    const auto request = io_.request<SetTensorHashRequest>(header);
    ggml_tensor tensor;
    const TensorRange range = read_tensor(request.tensor, tensor);
    Buffer & buffer = buffers_.at(request.tensor.buffer);
    const uint64_t offset = buffer.offset_of(range.address, range.size);
    uint8_t known = 0;
    if (WeightCache * cache = store_.cache();
        cache && request.offset == 0 && is_whole(request.tensor, tensor) && offset % weight_alignment == 0) {
        const auto entry = cache->find_fnv(request.hash);
        if (entry && entry->size == range.size) {
            if (std::shared_ptr<Weight> weight = store_.find_or_load(entry->hash, entry->size)) {
                buffer.hold(offset, std::move(weight));
                counters_.bytes_weights_reused += range.size;
                known = 1;
            }
        }
    }
    io_.answer(known);
    return "size: " + std::to_string(range.size) + (known ? " (cached)" : " (not cached)");
}

bool WeightCommands::receive(const SetTensorHeader & request, const ggml_tensor & tensor, Buffer & buffer, uint64_t at,
                             uint64_t size) {
    const bool whole = request.offset == 0 && is_whole(request.tensor, tensor) && size == ggml_nbytes(&tensor);
    // A cache that graphs write to may be set as a whole, too, when a state is restored.
    const bool weight = request.cache || (ggml_is_quantized(tensor.type) && !buffer.computed());
    if (!whole || !weight || at % weight_alignment != 0) return false;
    std::shared_ptr<uint8_t> data = receive_data(buffer, at, size);
    const Sha256 hash = sha256(data.get(), size);
    if (WeightCache * cache = store_.cache(); cache && request.cache) {
        cache->add_fnv(fnv1a(data.get(), size), {hash, size});
    }
    buffer.hold(at, store_.add(hash, size, std::move(data)));
    return true;
}

void WeightCommands::unpin() {
    pinned_.clear();
    pinned_bytes_ = 0;
    uncharged_.clear();
}

void WeightCommands::make_room(uint64_t size) {
    uncharged_.clear();
    for (const auto & [hash, weight] : pinned_) {
        if (size < weight->size()) continue;
        // Whoever else holds it has not paid, since it was paid already.
        if (weight.use_count() > 1 || !weight->unpay()) continue;
        size -= weight->size();
        uncharged_.push_back(weight);
    }
}

void WeightCommands::charge_again() {
    for (const std::shared_ptr<Weight> & weight : uncharged_) {
        if (store_.pay(*weight)) continue;
        pinned_bytes_ -= weight->size();
        pinned_.erase(weight->hash());
    }
    uncharged_.clear();
}

}  // namespace droid::rpc
