#include "rpc/server/socket_stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <thread>

#include "rpc/socket.h"

namespace droid::rpc {

namespace {

#ifdef MSG_NOSIGNAL
constexpr int no_signal = MSG_NOSIGNAL;
#else
constexpr int no_signal = 0;  // SO_NOSIGPIPE, set by tune_socket()
#endif

constexpr int max_pieces = 8;
constexpr size_t buffer_size = 32 * 1024;
constexpr int lock_tries = 50;  // a millisecond apart

// Drops the first bytes of the pieces.
void advance(iovec *& pieces, int & count, size_t bytes) {
    while (count > 0 && bytes >= pieces->iov_len) {
        bytes -= pieces->iov_len;
        pieces++;
        count--;
    }
    if (count > 0) {
        pieces->iov_base = static_cast<char *>(pieces->iov_base) + bytes;
        pieces->iov_len -= bytes;
    }
}

int milliseconds_until(std::chrono::steady_clock::time_point when) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(when - std::chrono::steady_clock::now()).count();
    return static_cast<int>(std::max<long long>(left, 0));
}

}  // namespace

void tune_client_socket(int fd) {
    tune_socket(fd);
    const int idle = 5, interval = 2, count = 3;
#if defined(TCP_KEEPIDLE)
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
#elif defined(TCP_KEEPALIVE)
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPALIVE, &idle, sizeof idle);
#endif
#ifdef TCP_KEEPINTVL
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
#endif
#ifdef TCP_USER_TIMEOUT
    const unsigned user_timeout_ms = 20000;
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &user_timeout_ms, sizeof user_timeout_ms);
#endif
}

bool SocketStream::read(void * data, size_t size) {
    char * p = static_cast<char *>(data);
    while (size > 0) {
        if (stopped_) return false;
        if (begin_ == end_ && size >= buffer_size) {
            size_t received = 0;
            if (!receive(p, size, received)) return false;
            p += received;
            size -= received;
            continue;
        }
        if (begin_ == end_) {
            buffer_.resize(buffer_size);
            begin_ = end_ = 0;
            if (!receive(buffer_.data(), buffer_size, end_)) return false;
        }
        const size_t taken = std::min(size, end_ - begin_);
        std::memcpy(p, buffer_.data() + begin_, taken);
        begin_ += taken;
        p += taken;
        size -= taken;
    }
    return true;
}

// One call, for what is there; waits until something is.
bool SocketStream::receive(char * data, size_t size, size_t & received) {
    for (;;) {
        if (deadline_) {
            pollfd waiting = {fd_, POLLIN, 0};
            const int ready = poll(&waiting, 1, milliseconds_until(*deadline_));
            if (ready < 0 && errno == EINTR) continue;
            if (ready == 0) timed_out_ = true;
            if (ready <= 0) return false;
        }
        const ssize_t n = recv(fd_, data, size, 0);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n <= 0) return false;
        received = static_cast<size_t>(n);
        return true;
    }
}

bool SocketStream::write(const iovec * pieces, int count) {
    iovec copy[max_pieces];
    if (count > max_pieces) return false;
    std::copy(pieces, pieces + count, copy);
    iovec * rest = copy;
    std::lock_guard<std::mutex> lock(writing_);
    advance(rest, count, 0);
    while (count > 0) {
        msghdr message = {};
        message.msg_iov = rest;
        message.msg_iovlen = count;
        const ssize_t n = sendmsg(fd_, &message, no_signal);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        advance(rest, count, static_cast<size_t>(n));
    }
    return true;
}

bool SocketStream::hung_up() {
#ifdef POLLRDHUP
    constexpr short events = POLLRDHUP;
#else
    constexpr short events = 0;  // POLLHUP comes unasked
#endif
    pollfd looking = {fd_, events, 0};
    return poll(&looking, 1, 0) > 0;
}

void SocketStream::set_deadline(int milliseconds) {
    deadline_ = std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
}

void SocketStream::stop() {
    stopped_ = true;
    shutdown_socket(fd_);
}

bool SocketStream::try_write(const void * data, size_t size) {
    // The other end may have an answer before the thread that wrote it has let go.
    std::unique_lock<std::mutex> lock(writing_, std::try_to_lock);
    for (int i = 0; i < lock_tries && !lock.owns_lock(); i++) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
        lock.try_lock();
    }
    if (!lock.owns_lock()) return false;
    return send(fd_, data, size, no_signal | MSG_DONTWAIT) == static_cast<ssize_t>(size);
}

void SocketStream::drain(int milliseconds) {
    shutdown(fd_, SHUT_WR);
    set_deadline(milliseconds);
    char ignored[16384];
    for (;;) {
        pollfd waiting = {fd_, POLLIN, 0};
        const int ready = poll(&waiting, 1, milliseconds_until(*deadline_));
        if (ready < 0 && errno == EINTR) continue;
        if (ready <= 0) return;
        const ssize_t n = recv(fd_, ignored, sizeof ignored, MSG_DONTWAIT);
        if (n < 0 && (errno == EINTR || errno == EAGAIN)) continue;
        if (n <= 0 || milliseconds_until(*deadline_) == 0) return;
    }
}

}  // namespace droid::rpc
