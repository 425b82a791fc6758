#pragma once

#include <atomic>
#include <chrono>
#include <mutex>
#include <optional>
#include <vector>

#include "rpc/server/stream.h"

namespace droid::rpc {

// Small messages leave at once, and a master that vanished without a word is noticed: after 5 s of silence it is asked
// every 2 s, 3 times; data it does not acknowledge for 20 s ends the connection, where the OS can do that.
void tune_client_socket(int fd);

// A connected socket, which is borrowed. One thread reads; any may write.
class SocketStream : public Stream {
  public:
    explicit SocketStream(int fd) : fd_(fd) {}

    bool read(void * data, size_t size) override;
    bool write(const iovec * pieces, int count) override;
    bool hung_up() override;

    // Reads fail from then on; nothing takes it away.
    void set_deadline(int milliseconds);
    void clear_deadline() { deadline_.reset(); }
    bool timed_out() const { return timed_out_; }

    // Ends both directions, also what was received and not yet read: it may be hours of work. From any thread.
    void stop();

    // Writes without waiting for the other end, between two messages of others; false when that is not possible.
    bool try_write(const void * data, size_t size);

    // Says that no more comes and reads until the other end hangs up as well, at most that long: closing a socket with
    // unread data in it would take back what was written last.
    void drain(int milliseconds);

  private:
    bool receive(char * data, size_t size, size_t & received);

    const int fd_;
    std::vector<char> buffer_;  // a step of a master is a dozen small reads
    size_t begin_ = 0;
    size_t end_ = 0;
    std::mutex writing_;
    std::optional<std::chrono::steady_clock::time_point> deadline_;
    bool timed_out_ = false;
    std::atomic<bool> stopped_{false};
};

}  // namespace droid::rpc
