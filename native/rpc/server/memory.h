#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>

namespace droid::rpc {

// Bytes that programs can take without swapping: MemAvailable on Linux and Android.
uint64_t available_memory();

// Bytes that may be in use at the same time; any thread may take and give.
class Budget {
  public:
    explicit Budget(uint64_t limit) : limit_(limit) {}

    bool take(uint64_t bytes);  // false when that is more than is left
    void give(uint64_t bytes) { used_ -= bytes; }

    uint64_t limit() const { return limit_; }
    uint64_t used() const { return used_; }
    uint64_t left() const { return limit_ - used_; }

  private:
    const uint64_t limit_;
    std::atomic<uint64_t> used_{0};
};

// What somebody took from a budget, given back when it goes. The budget lives longer.
class Charge {
  public:
    Charge() = default;
    ~Charge() { clear(); }
    Charge(Charge && other) noexcept : budget_(other.budget_), bytes_(other.bytes_) { other.bytes_ = 0; }
    Charge & operator=(Charge && other) noexcept;

    static Charge take(Budget & budget, uint64_t bytes);  // bytes() is 0 when the budget has not as much

    uint64_t bytes() const { return bytes_; }
    bool grow(uint64_t bytes);     // false when the budget has not as much
    Charge split(uint64_t bytes);  // of what is here, at most
    void clear();

  private:
    Budget * budget_ = nullptr;
    uint64_t bytes_ = 0;
};

// Memory for a client's buffer: zeros until it is written to, so that nobody reads what another client left behind, and
// only pages that were touched take memory.
class Pages {
  public:
    // False in place of an exception when the OS has no such range.
    bool allocate(uint64_t size);

    Pages() = default;
    ~Pages();
    Pages(const Pages &) = delete;
    Pages & operator=(const Pages &) = delete;

    uint8_t * data() const { return data_; }
    void fill(uint64_t offset, uint64_t size, uint8_t value);

    // The content of a range is not needed any more; its whole pages go back to the OS.
    void forget(uint64_t offset, uint64_t size);

  private:
    uint8_t * data_ = nullptr;
    uint64_t size_ = 0;
};

// Uninitialised, aligned like a ggml buffer; null when there is no memory.
std::shared_ptr<uint8_t> allocate_aligned(uint64_t size);

}  // namespace droid::rpc
