#include "rpc/server/buffers.h"

#include <algorithm>
#include <cstring>

#include "rpc/server/refusal.h"

namespace droid::rpc {

namespace {

constexpr size_t max_buffers = 4096;
// Each buffer has a range of pretended addresses of its own, 16 TiB long, so that no sum wraps and none runs into the
// next one; 0 stays free.
constexpr int slot_bits = 44;
constexpr uint64_t max_buffer_size = 1ull << (slot_bits - 1);

std::string bytes_text(uint64_t bytes) {
    return std::to_string(bytes) + " bytes";
}

}  // namespace

void Buffer::check_range(uint64_t offset, uint64_t size) const {
    if (offset > size_ || size > size_ - offset) {
        throw Refusal("a range of " + bytes_text(size) + " at " + std::to_string(offset) +
                      " is outside of a buffer of " + bytes_text(size_));
    }
}

uint64_t Buffer::offset_of(uint64_t address, uint64_t size) const {
    if (address < base_ || address - base_ > size_) throw Refusal("an address is outside of its buffer");
    check_range(address - base_, size);
    return address - base_;
}

Buffer::Weights::iterator Buffer::first_overlap(uint64_t offset, uint64_t size) {
    if (size == 0 || weights_.empty()) return weights_.end();
    auto entry = weights_.upper_bound(offset);
    if (entry != weights_.begin()) {
        const auto before = std::prev(entry);
        if (before->first + before->second->size() > offset) return before;
    }
    return entry != weights_.end() && entry->first < offset + size ? entry : weights_.end();
}

Buffer::Weights::const_iterator Buffer::first_overlap(uint64_t offset, uint64_t size) const {
    return const_cast<Buffer *>(this)->first_overlap(offset, size);
}

Buffer::Weights::iterator Buffer::drop(Weights::iterator entry, bool keep_data) {
    const uint64_t offset = entry->first;
    const std::shared_ptr<Weight> weight = entry->second;
    std::shared_ptr<const uint8_t> data;
    if (keep_data) data = weight->plain();
    if (!charge_.grow(weight->size())) throw out_of_memory("no memory left to write to a range that held a weight");
    if (data) std::memcpy(pages_.data() + offset, data.get(), weight->size());
    epoch_++;
    return weights_.erase(entry);
}

uint8_t * Buffer::writable(uint64_t offset, uint64_t size) {
    for (auto entry = first_overlap(offset, size); entry != weights_.end() && entry->first < offset + size;) {
        const bool covered = entry->first >= offset && entry->second->size() <= size - (entry->first - offset);
        entry = drop(entry, !covered);
    }
    return pages_.data() + offset;
}

uint8_t * Buffer::modifiable(uint64_t offset, uint64_t size) {
    for (auto entry = first_overlap(offset, size); entry != weights_.end() && entry->first < offset + size;) {
        entry = drop(entry, true);
    }
    return pages_.data() + offset;
}

Buffer::Held Buffer::held(uint64_t offset, uint64_t size) const {
    const auto entry = first_overlap(offset, size);
    if (entry == weights_.end() || entry->first > offset) return {};
    const uint64_t inside = offset - entry->first;
    if (size > entry->second->size() - inside) return {};
    return {entry->second, inside};
}

Buffer::Data Buffer::readable(uint64_t offset, uint64_t size) {
    if (const Held found = held(offset, size); found.weight) {
        std::shared_ptr<const uint8_t> data = found.weight->plain();
        return {data.get() + found.offset, data};
    }
    return {modifiable(offset, size), nullptr};
}

void Buffer::fill(uint64_t offset, uint64_t size, uint8_t value) {
    writable(offset, size);
    if (size > 0) pages_.fill(offset, size, value);
}

void Buffer::forget(uint64_t offset, uint64_t size) {
    writable(offset, size);
    pages_.forget(offset, size);
}

void Buffer::hold(uint64_t offset, std::shared_ptr<Weight> weight) {
    const uint64_t size = weight->size();
    forget(offset, size);
    weight->pay(charge_.split(size));
    weights_.emplace(offset, std::move(weight));
    epoch_++;
}

void Buffer::stored(uint64_t bytes) {
    if (computed_) return;
    bytes = std::min(bytes, size_ - stored_);
    stored_ += bytes;
    counters_.bytes_weights += bytes;
}

void Buffer::mark_computed() {
    if (computed_) return;
    computed_ = true;
    counters_.bytes_weights -= stored_;
    stored_ = 0;
}

Buffers::Buffers(Budget & budget, uint64_t limit, ServerCounters & counters)
    : budget_(budget), limit_(limit), counters_(counters), slots_(max_buffers) {}

Buffers::~Buffers() {
    while (!buffers_.empty()) free(buffers_.begin()->first);
}

Buffer * Buffers::allocate(uint64_t size, std::string & reason) {
    const auto slot = std::find(slots_.begin(), slots_.end(), false);
    if (size == 0 || size > max_buffer_size) {
        reason = "nobody needs a buffer of " + bytes_text(size);
    } else if (slot == slots_.end()) {
        reason = "the client has " + std::to_string(max_buffers) + " buffers already";
    } else if (size > limit_ - used_) {
        reason = bytes_text(size) + " are over the limit for one client of " + bytes_text(limit_) + ", of which " +
                 bytes_text(used_) + " are in use";
    } else {
        std::unique_ptr<Buffer> buffer(new Buffer(counters_, epoch_));
        buffer->charge_ = Charge::take(budget_, size);
        if (!buffer->charge_.bytes()) {
            reason = bytes_text(size) + " are over the limit for all clients of " + bytes_text(budget_.limit()) +
                     ", of which " + bytes_text(budget_.used()) + " are in use";
        } else if (!buffer->pages_.allocate(size)) {
            reason = "the operating system has no " + bytes_text(size);
        } else {
            buffer->handle_ = next_handle_++;
            buffer->base_ = static_cast<uint64_t>(slot - slots_.begin() + 1) << slot_bits;
            buffer->size_ = size;
            Buffer & added = *buffer;
            buffers_.emplace(added.handle_, std::move(buffer));
            *slot = true;
            used_ += size;
            counters_.bytes_allocated += size;
            return &added;
        }
    }
    return nullptr;
}

void Buffers::free(uint64_t handle) {
    const Buffer & buffer = at(handle);
    used_ -= buffer.size_;
    counters_.bytes_allocated -= buffer.size_;
    counters_.bytes_weights -= buffer.stored_;
    slots_[(buffer.base_ >> slot_bits) - 1] = false;
    buffers_.erase(handle);
    epoch_++;
}

Buffer & Buffers::at(uint64_t handle) {
    const auto found = buffers_.find(handle);
    if (found == buffers_.end()) throw Refusal("there is no buffer " + std::to_string(handle));
    return *found->second;
}

uint64_t Buffers::left() const {
    return std::min(limit_ - used_, budget_.left());
}

bool Buffers::charge(Charge & charge, uint64_t bytes) {
    uncharge(charge);
    if (bytes > limit_ - used_) return false;
    charge = Charge::take(budget_, bytes);
    if (charge.bytes() != bytes) return false;
    used_ += bytes;
    return true;
}

void Buffers::uncharge(Charge & charge) {
    used_ -= charge.bytes();
    charge.clear();
}

}  // namespace droid::rpc
