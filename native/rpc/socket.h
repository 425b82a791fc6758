#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>

namespace droid::rpc {

// Stream sockets, of TCP unless the comment says otherwise. An fd is borrowed, and blocking, unless the comment says
// otherwise. What only TCP can do has no effect on the others.

// The descriptor of a socket, closed with it.
class OwnedSocket {
  public:
    OwnedSocket() = default;
    explicit OwnedSocket(int fd) : fd_(fd) {}
    OwnedSocket(OwnedSocket && other) noexcept : fd_(other.release()) {}
    OwnedSocket & operator=(OwnedSocket && other) noexcept;
    ~OwnedSocket();

    explicit operator bool() const { return fd_ >= 0; }
    int get() const { return fd_; }
    // For the caller to close.
    int release() noexcept { return std::exchange(fd_, -1); }

  private:
    int fd_ = -1;
};

// A connected socket for the caller to close. Tries every address of host, for timeout_ms in all; an address that does
// not answer leaves the others their share of it. A file descriptor that becomes readable (interrupt_fd, unless it is
// negative) ends the attempt.
// Throws CodedError DROID_ENDPOINT_TIMEOUT, _REFUSED or _UNREACHABLE, naming endpoint; DROID_CLOSED when interrupted.
int connect_tcp(const std::string & endpoint, const std::string & host, uint16_t port, int timeout_ms = 10000,
                int interrupt_fd = -1);

// A listening socket for the caller to close, and the port it got.
// Throws CodedError DROID_PORT_IN_USE or DROID_INVALID_ARGUMENT.
std::pair<int, uint16_t> listen_tcp(const std::string & host, uint16_t port);

// Two connected stream sockets for the caller to close, which no child process inherits. Throws CodedError
// DROID_INVALID_ARGUMENT when no descriptor is left.
std::pair<int, int> socket_pair();

// When a silent peer is noticed; seconds.
struct Keepalive {
    int idle = 30;
    int interval = 10;
    int count = 3;
};

// Small messages leave at once, and a silent peer is noticed.
void tune_socket(int fd, const Keepalive & keepalive = {});

// How long sent data may stay unacknowledged before the connection ends (TCP_USER_TIMEOUT; nothing where there is
// none). A peer that is too busy to read falls under it as well, although its kernel answers.
void set_user_timeout(int fd, int timeout_ms);

void set_nonblocking(int fd);

// Bytes that the peer has not acknowledged, or not read where the socket is not TCP's; 0 where the system does not
// tell.
size_t unacknowledged_bytes(int fd);

// How long the peer's kernel has not answered although it was asked: what was sent is being sent again, or a probe of
// the connection is without an answer. A peer that is only too busy to read does not count. 0 where the system does not
// tell.
std::chrono::milliseconds unanswered_for(int fd);

void close_socket(int fd);
// Closes without sending what is left; the peer sees a reset.
void abort_socket(int fd);
// Wakes whoever is blocked on fd in another thread; the fd stays open.
void shutdown_socket(int fd);

}  // namespace droid::rpc
