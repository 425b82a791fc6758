#include "rpc/server/memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "rpc/server/server.h"

#ifdef __APPLE__
#include <mach/mach.h>
#endif

namespace droid::rpc {

namespace {

// Of what is built in.
uint64_t half_of_memory() {
    const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
    return pages > 0 && page > 0 ? static_cast<uint64_t>(pages) * static_cast<uint64_t>(page) / 2 : 1ull << 30;
}

}  // namespace

uint64_t available_memory() {
#if defined(__linux__)
    if (FILE * file = std::fopen("/proc/meminfo", "re")) {
        char line[128];
        unsigned long long kilobytes = 0;
        bool found = false;
        while (!found && std::fgets(line, sizeof line, file)) {
            found = std::sscanf(line, "MemAvailable: %llu kB", &kilobytes) == 1;
        }
        std::fclose(file);
        if (found) return kilobytes * 1024;
    }
#elif defined(__APPLE__)
    vm_statistics64_data_t statistics = {};
    mach_msg_type_number_t count = HOST_VM_INFO64_COUNT;
    if (host_statistics64(mach_host_self(), HOST_VM_INFO64, reinterpret_cast<host_info64_t>(&statistics), &count) ==
        KERN_SUCCESS) {
        const uint64_t pages =
            static_cast<uint64_t>(statistics.free_count) + statistics.inactive_count + statistics.purgeable_count;
        return pages * static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    }
#endif
    return half_of_memory();  // without a better figure
}

uint64_t default_memory_limit() {
    const uint64_t most = available_memory() / 10 * 8;
#ifdef __ANDROID__
    // What an app has beyond that, Android takes back by ending it.
    return std::min(most, half_of_memory());
#else
    return most;
#endif
}

bool Budget::take(uint64_t bytes) {
    uint64_t used = used_;
    do {
        if (bytes > limit_ - used) return false;
    } while (!used_.compare_exchange_weak(used, used + bytes));
    return true;
}

Charge & Charge::operator=(Charge && other) noexcept {
    if (this == &other) return *this;
    clear();
    budget_ = other.budget_;
    bytes_ = other.bytes_;
    other.bytes_ = 0;
    return *this;
}

Charge Charge::take(Budget & budget, uint64_t bytes) {
    Charge charge;
    charge.budget_ = &budget;
    if (budget.take(bytes)) charge.bytes_ = bytes;
    return charge;
}

bool Charge::grow(uint64_t bytes) {
    if (!budget_ || !budget_->take(bytes)) return false;
    bytes_ += bytes;
    return true;
}

Charge Charge::split(uint64_t bytes) {
    Charge part;
    part.budget_ = budget_;
    part.bytes_ = std::min(bytes, bytes_);
    bytes_ -= part.bytes_;
    return part;
}

void Charge::clear() {
    if (budget_ && bytes_) budget_->give(bytes_);
    bytes_ = 0;
}

bool Pages::allocate(uint64_t size) {
    void * data = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return false;
    data_ = static_cast<uint8_t *>(data);
    size_ = size;
    return true;
}

Pages::~Pages() {
    if (data_) munmap(data_, size_);
}

void Pages::fill(uint64_t offset, uint64_t size, uint8_t value) {
#ifdef __linux__
    if (value == 0 && offset == 0 && size == size_ && madvise(data_, size_, MADV_DONTNEED) == 0) return;
#endif
    std::memset(data_ + offset, value, size);
}

void Pages::forget(uint64_t offset, uint64_t size) {
#ifdef __linux__
    const uint64_t page = static_cast<uint64_t>(sysconf(_SC_PAGESIZE));
    const uint64_t first = (offset + page - 1) / page * page, last = (offset + size) / page * page;
    if (first < last) madvise(data_ + first, last - first, MADV_DONTNEED);
#else
    (void)offset, (void)size;
#endif
}

std::shared_ptr<uint8_t> allocate_aligned(uint64_t size) {
    constexpr size_t alignment = 64;
    // malloc keeps what it was given back, up to tens of megabytes a piece, and the limit is about what the OS sees.
    constexpr uint64_t straight_from_the_os = 256 * 1024;
    if (size >= straight_from_the_os) {
        auto pages = std::make_shared<Pages>();
        if (!pages->allocate(size)) return nullptr;
        return std::shared_ptr<uint8_t>(pages, pages->data());
    }
    void * data = nullptr;
    if (posix_memalign(&data, alignment, std::max<size_t>(static_cast<size_t>(size), 1)) != 0) return nullptr;
    return std::shared_ptr<uint8_t>(static_cast<uint8_t *>(data), std::free);
}

}  // namespace droid::rpc
