#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "rpc/server/memory.h"
#include "rpc/server/server.h"
#include "rpc/server/weights.h"

namespace droid::rpc {

// Memory that a client allocated. In place of a range of its own pages it may hold a weight, which others share.
class Buffer {
  public:
    // Throws Refusal when a range is not inside of the buffer; all ranges below have been through this.
    uint64_t offset_of(uint64_t address, uint64_t size) const;
    void check_range(uint64_t offset, uint64_t size) const;

    uint64_t handle() const { return handle_; }
    uint64_t base() const { return base_; }
    uint64_t size() const { return size_; }

    // The buffer's own memory of a range that is about to be written. Weights that it covers are let go; others that it
    // touches become ordinary data, or throw Refusal when they are repacked.
    uint8_t * writable(uint64_t offset, uint64_t size);
    // The same for a range that is read and written.
    uint8_t * modifiable(uint64_t offset, uint64_t size);

    // The data of a range, and what keeps it in memory; until the next change of the buffer.
    struct Data {
        const uint8_t * data;
        std::shared_ptr<const void> owner;
    };
    Data readable(uint64_t offset, uint64_t size);

    void fill(uint64_t offset, uint64_t size, uint8_t value);

    // What lies in the range is not needed any more.
    void forget(uint64_t offset, uint64_t size);

    // The one weight that a range lies in, and where in it; null when there is none.
    struct Held {
        std::shared_ptr<Weight> weight;
        uint64_t offset = 0;
    };
    Held held(uint64_t offset, uint64_t size) const;

    // The range becomes that weight, whose size it has.
    void hold(uint64_t offset, std::shared_ptr<Weight> weight);

    // Data of weights that was stored in it as ordinary data, as far as one can tell: nobody says what a buffer is for,
    // but what a graph writes to is none.
    void stored(uint64_t bytes);
    void mark_computed();
    bool computed() const { return computed_; }

  private:
    friend class Buffers;

    using Weights = std::map<uint64_t, std::shared_ptr<Weight>>;  // by offset, not overlapping

    Buffer(ServerCounters & counters, uint64_t & epoch) : counters_(counters), epoch_(epoch) {}

    Weights::iterator first_overlap(uint64_t offset, uint64_t size);
    Weights::const_iterator first_overlap(uint64_t offset, uint64_t size) const;
    Weights::iterator drop(Weights::iterator entry, bool keep_data);

    ServerCounters & counters_;
    uint64_t & epoch_;
    uint64_t handle_ = 0;
    uint64_t base_ = 0;
    uint64_t size_ = 0;
    Pages pages_;
    Charge charge_;
    Weights weights_;
    uint64_t stored_ = 0;
    bool computed_ = false;
};

// All buffers of one client. What it gets as handles and addresses are numbers made up here, never pointers.
class Buffers {
  public:
    // limit: bytes for this client.
    Buffers(Budget & budget, uint64_t limit, ServerCounters & counters);
    ~Buffers();
    Buffers(const Buffers &) = delete;
    Buffers & operator=(const Buffers &) = delete;

    // Null, and the reason, when that is too much.
    Buffer * allocate(uint64_t size, std::string & reason);
    void free(uint64_t handle);

    // Throws Refusal when there is no such buffer.
    Buffer & at(uint64_t handle);

    uint64_t limit() const { return limit_; }
    uint64_t left() const;  // bytes that could be allocated now

    // Of other things that a client makes the server keep; false when it is too much.
    bool charge(Charge & charge, uint64_t bytes);
    void uncharge(Charge & charge);

    uint64_t epoch() const { return epoch_; }  // another one after each change of what lies where

  private:
    Budget & budget_;
    const uint64_t limit_;
    ServerCounters & counters_;
    uint64_t used_ = 0;
    uint64_t epoch_ = 0;
    uint64_t next_handle_ = 1;
    std::map<uint64_t, std::unique_ptr<Buffer>> buffers_;  // by handle
    std::vector<bool> slots_;                              // ranges of addresses in use
};

}  // namespace droid::rpc
