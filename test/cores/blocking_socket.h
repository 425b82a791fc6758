#pragma once

// Sends and receives that wait, for the ends of a connection that a test plays itself.

#include <sys/socket.h>
#include <sys/time.h>

#include <cerrno>
#include <cstddef>

namespace droid::test {

#ifdef MSG_NOSIGNAL
constexpr int blocking_send_flags = MSG_NOSIGNAL;
#else
constexpr int blocking_send_flags = 0;  // macOS: SO_NOSIGPIPE, set in tune_socket
#endif

inline bool send_all(int fd, const void * data, size_t size) {
    const char * p = static_cast<const char *>(data);
    while (size > 0) {
        const ssize_t n = send(fd, p, size, blocking_send_flags);
        if (n < 0 && errno == EINTR) continue;
        if (n <= 0) return false;
        p += n;
        size -= static_cast<size_t>(n);
    }
    return true;
}

// The two pieces need not arrive together.
inline bool send_all(int fd, const void * head, size_t head_size, const void * data, size_t size) {
    return send_all(fd, head, head_size) && send_all(fd, data, size);
}

inline bool recv_all(int fd, void * data, size_t size) {
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

// 0 for ever.
inline void set_receive_timeout(int fd, int seconds) {
    timeval timeout = {};
    timeout.tv_sec = seconds;
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof timeout);
}

}  // namespace droid::test
