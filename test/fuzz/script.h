#pragma once

#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <vector>

namespace droid::fuzz {

// What two masters send to one server, taken apart from one input. Among the messages are some that no protocol knows,
// and that nobody gets to read:
constexpr uint8_t other_master = 200;  // what follows comes from the other one
constexpr uint8_t restart = 201;       // both are gone, and what follows comes to a server that was started anew

// The masters' bytes between two restarts. Each is read by a thread of its own, but only one of them runs at a time:
// the other waits in read(), so that an input always does the same.
class Script {
  public:
    static constexpr int masters = 2;

    // Until a restart, whose end goes to `used`; data outlives it.
    Script(const uint8_t * data, size_t size, size_t & used);

    bool has(int master) const { return has_[master]; }

    // False when there is no more of that master; to be followed by leave() once it has cleaned up.
    bool read(int master, void * data, size_t size);
    void leave(int master);

  private:
    struct Part {
        int master;
        const uint8_t * data;
        size_t size;
    };

    void add(int master, const uint8_t * begin, const uint8_t * end);
    void skip();
    bool expects(int master) const;

    std::vector<Part> parts_;
    size_t next_ = 0;
    bool has_[masters] = {};
    bool gone_[masters] = {};
    std::mutex mutex_;
    std::condition_variable changed_;
    int turn_ = 0;
};

}  // namespace droid::fuzz
