#include "script.h"

#include <algorithm>
#include <cstring>

namespace droid::fuzz {

namespace {

constexpr size_t header_size = 1 + sizeof(uint64_t);

}  // namespace

Script::Script(const uint8_t * data, size_t size, size_t & used) {
    const uint8_t * const end = data + size;
    const uint8_t * begin = data;
    const uint8_t * at = data;
    int master = 0;
    // What does not parse as messages goes to whoever speaks, as it is.
    while (size_t(end - at) >= header_size) {
        uint64_t payload;
        std::memcpy(&payload, at + 1, sizeof payload);
        if (payload > size_t(end - at) - header_size) break;
        const uint8_t * const next = at + header_size + payload;
        if (*at == other_master || *at == restart) {
            add(master, begin, at);
            begin = next;
            master = 1 - master;
        }
        if (*at == restart) {
            used = size_t(next - data);
            return;
        }
        at = next;
    }
    add(master, begin, end);
    used = size;
}

void Script::add(int master, const uint8_t * begin, const uint8_t * end) {
    if (begin == end) return;
    parts_.push_back({master, begin, size_t(end - begin)});
    has_[master] = true;
}

void Script::skip() {
    while (next_ < parts_.size() && (parts_[next_].size == 0 || gone_[parts_[next_].master])) next_++;
}

bool Script::expects(int master) const {
    return std::any_of(parts_.begin() + ptrdiff_t(next_), parts_.end(),
                       [&](const Part & part) { return part.master == master && part.size > 0; });
}

bool Script::read(int master, void * data, size_t size) {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [&] { return turn_ == master; });
    auto * to = static_cast<uint8_t *>(data);
    while (size > 0) {
        skip();
        if (!expects(master)) return false;
        Part & part = parts_[next_];
        if (part.master != master) {
            turn_ = part.master;
            changed_.notify_all();
            changed_.wait(lock, [&] { return turn_ == master; });
            continue;
        }
        const size_t n = std::min(size, part.size);
        std::memcpy(to, part.data, n);
        part.data += n;
        part.size -= n;
        to += n;
        size -= n;
    }
    return true;
}

void Script::leave(int master) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        gone_[master] = true;
        turn_ = 1 - master;
    }
    changed_.notify_all();
}

}  // namespace droid::fuzz
