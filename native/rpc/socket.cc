#include "socket.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <memory>

#include "errors.h"

namespace droid::rpc {

namespace {

#ifdef MSG_NOSIGNAL
constexpr int send_flags = MSG_NOSIGNAL;  // a dead peer is an error to return, not a SIGPIPE for the host process
#else
constexpr int send_flags = 0;  // macOS: SO_NOSIGPIPE, set in tune_socket
#endif

using Addresses = std::unique_ptr<addrinfo, decltype(&freeaddrinfo)>;

Addresses resolve(const std::string & host, uint16_t port, int flags, int & status) {
    addrinfo hints = {};
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = flags | AI_NUMERICSERV;
    addrinfo * list = nullptr;
    status = getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &list);
    return Addresses(status == 0 ? list : nullptr, freeaddrinfo);
}

// 0 when connected, else an errno.
int connect_within(int fd, const addrinfo & address, int timeout_ms) {
    const int flags = fcntl(fd, F_GETFL);
    fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    int error = 0;
    if (connect(fd, address.ai_addr, address.ai_addrlen) != 0) {
        error = errno;
        if (error == EINPROGRESS) {
            pollfd waiting = {fd, POLLOUT, 0};
            int ready;
            do {
                ready = poll(&waiting, 1, timeout_ms);
            } while (ready < 0 && errno == EINTR);
            socklen_t length = sizeof error;
            error = ETIMEDOUT;
            if (ready > 0) getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length);
        }
    }
    fcntl(fd, F_SETFL, flags);
    return error;
}

}  // namespace

int connect_tcp(const std::string & endpoint, const std::string & host, uint16_t port, int timeout_ms) {
    int status = 0;
    const Addresses addresses = resolve(host, port, 0, status);
    if (!addresses) {
        throw CodedError("DROID_ENDPOINT_UNREACHABLE",
                         "Cannot resolve the worker " + endpoint + ": " + gai_strerror(status) + ".");
    }
    int error = EHOSTUNREACH;
    for (const addrinfo * address = addresses.get(); address; address = address->ai_next) {
        const int fd = socket(address->ai_family, address->ai_socktype, address->ai_protocol);
        if (fd < 0) {
            error = errno;
            continue;
        }
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        error = connect_within(fd, *address, timeout_ms);
        if (error == 0) {
            tune_socket(fd);
            return fd;
        }
        close(fd);
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
    if (bind(fd, addresses->ai_addr, addresses->ai_addrlen) != 0 || listen(fd, 16) != 0) {
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

void tune_socket(int fd) {
    const int on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
#ifdef TCP_KEEPIDLE
    const int idle = 30, interval = 10, count = 3;
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
    setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
#endif
#ifdef SO_NOSIGPIPE
    setsockopt(fd, SOL_SOCKET, SO_NOSIGPIPE, &on, sizeof on);
#endif
}

bool send_all(int fd, const void * data, size_t size) {
    const char * p = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t n = send(fd, p, size, send_flags);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

bool send_all(int fd, const void * head, size_t head_size, const void * data, size_t size) {
    iovec pieces[2] = {{const_cast<void *>(head), head_size}, {const_cast<void *>(data), size}};
    msghdr message = {};
    message.msg_iov = pieces;
    message.msg_iovlen = 2;
    ssize_t n;
    do {
        n = sendmsg(fd, &message, send_flags);
    } while (n < 0 && errno == EINTR);
    if (n < 0) return false;
    const size_t sent = static_cast<size_t>(n);
    if (sent < head_size) {
        return send_all(fd, static_cast<const char *>(head) + sent, head_size - sent) && send_all(fd, data, size);
    }
    return send_all(fd, static_cast<const char *>(data) + (sent - head_size), size - (sent - head_size));
}

bool recv_all(int fd, void * data, size_t size) {
    char * p = static_cast<char *>(data);
    while (size > 0) {
        const ssize_t n = recv(fd, p, size, 0);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

void set_socket_receive_timeout(int fd, int seconds) {
    timeval timeout = {};
    timeout.tv_sec = seconds;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

void close_socket(int fd) {
    close(fd);
}

void shutdown_socket(int fd) {
    shutdown(fd, SHUT_RDWR);
}

}  // namespace droid::rpc
