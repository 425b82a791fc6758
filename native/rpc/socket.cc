#include "socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>
#ifdef __linux__
#include <linux/sockios.h>
#endif

#include <cerrno>
#include <chrono>
#include <cstring>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>

#include "errors.h"

namespace droid::rpc {

namespace {

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const std::string & host, uint16_t port, int flags, int & status) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    addrinfo * list = nullptr;
    status = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
    return Addresses(status == 0 ? list : nullptr, freeaddrinfo);
}

using Clock = std::chrono::steady_clock;

int left_ms(Clock::time_point deadline) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now()).count();
    return left < 0 ? 0 : static_cast<int>(left) + 1;
}

// 0 when fd is ready, else ETIMEDOUT, or ECANCELED when interrupt_fd is readable.
int wait_until(int fd, short events, int interrupt_fd, Clock::time_point deadline) {
    pollfd waiting[2] = {{fd, events, 0}, {interrupt_fd, POLLIN, 0}};
    int ready;
    do {
        ready = poll(waiting, 2, left_ms(deadline));
    } while (ready < 0 && errno == EINTR);
    if (ready < 0) return errno;
    if (waiting[1].revents) return ECANCELED;
    return ready > 0 ? 0 : ETIMEDOUT;
}

// 0 when connected, else an errno. fd is non-blocking.
int connect_within(int fd, const addrinfo & address, int interrupt_fd, Clock::time_point deadline) {
    if (connect(fd, address.ai_addr, address.ai_addrlen) == 0) return 0;
    int error = errno;
    if (error != EINPROGRESS && error != EINTR) return error;
    error = wait_until(fd, POLLOUT, interrupt_fd, deadline);
    if (error != 0) return error;
    socklen_t length = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
    return error;
}

// A look-up in a thread of its own: getaddrinfo() may sit in a name server's timeouts, which nothing can cut short.
// Whoever is last, the thread or the one who waits, frees the rest.
struct LookUp {
    std::string host;
    uint16_t port = 0;
    int done[2] = {-1, -1};
    std::mutex mutex;
    Addresses addresses{nullptr, freeaddrinfo};
    int status = 0;

    ~LookUp() {
        for (const int fd : done) {
            if (fd >= 0) close(fd);
        }
    }
};

Addresses resolve_within(const std::string & host, uint16_t port, int interrupt_fd, Clock::time_point deadline,
                         int & status, int & error) {
    error = 0;
    Addresses addresses = resolve(host, port, AI_NUMERICHOST, status);
    if (addresses) return addresses;
    const auto lookup = std::make_shared<LookUp>();
    lookup->host = host;
    lookup->port = port;
    if (pipe(lookup->done) != 0) {
        error = errno;
        return addresses;
    }
    for (const int fd : lookup->done) fcntl(fd, F_SETFD, FD_CLOEXEC);
    try {
        std::thread([lookup] {
            int result = 0;
            Addresses found = resolve(lookup->host, lookup->port, 0, result);
            {
                const std::lock_guard<std::mutex> lock(lookup->mutex);
                lookup->addresses = std::move(found);
                lookup->status = result;
            }
            [[maybe_unused]] const ssize_t written = write(lookup->done[1], "", 1);
        }).detach();
    } catch (const std::system_error & problem) {
        error = problem.code().value();
        return addresses;
    }
    error = wait_until(lookup->done[0], POLLIN, interrupt_fd, deadline);
    if (error != 0) return addresses;
    const std::lock_guard<std::mutex> lock(lookup->mutex);
    status = lookup->status;
    return std::move(lookup->addresses);
}

}  // namespace

OwnedSocket & OwnedSocket::operator=(OwnedSocket && other) noexcept {
    if (fd_ >= 0 && this != &other) close(fd_);
    fd_ = other.release();
    return *this;
}

OwnedSocket::~OwnedSocket() {
    if (fd_ >= 0) close(fd_);
}

int connect_tcp(const std::string & endpoint, const std::string & host, uint16_t port, int timeout_ms,
                int interrupt_fd) {
    const auto deadline = Clock::now() + std::chrono::milliseconds(timeout_ms);
    int status = 0, error = 0;
    const Addresses addresses = resolve_within(host, port, interrupt_fd, deadline, status, error);
    if (!addresses && error == 0) {
        throw CodedError("DROID_ENDPOINT_UNREACHABLE",
                         "Cannot resolve the worker " + endpoint + ": " + gai_strerror(status) + ".");
    }
    int remaining = 0;
    for (const addrinfo * address = addresses.get(); address; address = address->ai_next) remaining++;
    for (const addrinfo * address = addresses.get(); address; address = address->ai_next, remaining--) {
        const int fd = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
        if (fd < 0) {
            error = errno;
            continue;
        }
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        const int flags = fcntl(fd, F_GETFL);
        fcntl(fd, F_SETFL, flags | O_NONBLOCK);
        const auto now = Clock::now();
        error = connect_within(fd, *address, interrupt_fd, now + (deadline - now) / remaining);
        if (error == 0) {
            fcntl(fd, F_SETFL, flags);
            tune_socket(fd);
            return fd;
        }
        close(fd);
        if (error == ECANCELED) break;
    }
    if (error == ECANCELED) {
        throw CodedError("DROID_CLOSED", "Connecting to the worker " + endpoint + " was interrupted.");
    }
    const char * code = error == ETIMEDOUT      ? "DROID_ENDPOINT_TIMEOUT"
                        : error == ECONNREFUSED ? "DROID_ENDPOINT_REFUSED"
                                                : "DROID_ENDPOINT_UNREACHABLE";
    throw CodedError(code, "Cannot connect to the worker " + endpoint + ": " + std::strerror(error) + ".");
}

std::pair<int, uint16_t> listen_tcp(const std::string & host, uint16_t port) {
    const std::string where = host + ":" + std::to_string(port);
    int status = 0;
    const Addresses addresses = resolve(host, port, AI_PASSIVE, status);
    if (!addresses) {
        throw CodedError("DROID_INVALID_ARGUMENT", "Cannot listen on " + where + ": " + gai_strerror(status) + ".");
    }
    const int fd = socket(addresses->ai_family, addresses->ai_socktype, addresses->ai_protocol);
    if (fd < 0) {
        throw CodedError("DROID_INVALID_ARGUMENT", "Cannot listen on " + where + ": " + std::strerror(errno) + ".");
    }
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    const int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, addresses->ai_addr, addresses->ai_addrlen) != 0 || listen(fd, SOMAXCONN) != 0) {
        const int error = errno;
        close(fd);
        if (error == EADDRINUSE) {
            throw CodedError("DROID_PORT_IN_USE", "Cannot listen on " + where +
                                                      ": another program uses that port. Choose another one, or 0 for "
                                                      "any that is free.");
        }
        throw CodedError("DROID_INVALID_ARGUMENT", "Cannot listen on " + where + ": " + std::strerror(error) + ".");
    }
    sockaddr_storage bound = {};
    socklen_t length = sizeof bound;
    getsockname(fd, reinterpret_cast<sockaddr *>(&bound), &length);
    const uint16_t got = bound.ss_family == AF_INET6 ? reinterpret_cast<sockaddr_in6 &>(bound).sin6_port
                                                     : reinterpret_cast<sockaddr_in &>(bound).sin_port;
    return {fd, ntohs(got)};
}

std::pair<int, int> socket_pair() {
    int fds[2];
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) != 0) {
        throw CodedError("DROID_INVALID_ARGUMENT",
                         std::string("Cannot make a pair of sockets: ") + std::strerror(errno) + ".");
    }
    const int on = 1;
    for (const int fd : fds) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
#ifdef SO_NOSIGPIPE
        setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#else
        (void)on;
#endif
    }
    return {fds[0], fds[1]};
}

void tune_socket(int fd, const Keepalive & keepalive) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef TCP_KEEPIDLE
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &keepalive.idle, sizeof keepalive.idle);
#elif defined(TCP_KEEPALIVE)
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPALIVE, &keepalive.idle, sizeof keepalive.idle);
#endif
#ifdef TCP_KEEPINTVL
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &keepalive.interval, sizeof keepalive.interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &keepalive.count, sizeof keepalive.count);
#endif
#ifdef SO_NOSIGPIPE
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
}

void set_user_timeout([[maybe_unused]] int fd, [[maybe_unused]] int timeout_ms) {
#ifdef TCP_USER_TIMEOUT
    const unsigned value = static_cast<unsigned>(timeout_ms);
    setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &value, sizeof value);
#endif
}

void set_nonblocking(int fd) {
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
}

size_t unacknowledged_bytes([[maybe_unused]] int fd) {
    int bytes = 0;
#if defined(__linux__)
    if (ioctl(fd, SIOCOUTQ, &bytes) != 0) return 0;
#elif defined(SO_NWRITE)
    socklen_t length = sizeof bytes;
    if (getsockopt(fd, SOL_SOCKET, SO_NWRITE, &bytes, &length) != 0) return 0;
#endif
    return bytes > 0 ? static_cast<size_t>(bytes) : 0;
}

std::chrono::milliseconds unanswered_for([[maybe_unused]] int fd) {
#if defined(__linux__)
    tcp_info info = {};
    socklen_t length = sizeof info;
    // Both counters go back to 0 with the next acknowledgement, that of a probe of a closed window included.
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 &&
        (info.tcpi_retransmits > 0 || info.tcpi_probes > 0)) {
        return std::chrono::milliseconds(info.tcpi_last_ack_recv);
    }
#endif
    return std::chrono::milliseconds(0);
}

void close_socket(int fd) {
    close(fd);
}

void abort_socket(int fd) {
    const linger now = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    close(fd);
}

void shutdown_socket(int fd) {
    shutdown(fd, SHUT_RDWR);
}

}  // namespace droid::rpc
