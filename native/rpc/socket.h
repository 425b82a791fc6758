#pragma once

#include <cstdint>
#include <string>
#include <utility>

namespace droid::rpc {

// Blocking TCP sockets; an fd is borrowed unless the comment says otherwise.

// A connected socket for the caller to close. Tries every address of host, each for at most timeout_ms.
// Throws CodedError DROID_ENDPOINT_TIMEOUT, _REFUSED or _UNREACHABLE, naming endpoint.
int connect_tcp(const std::string & endpoint, const std::string & host, uint16_t port, int timeout_ms = 10000);

// A listening socket for the caller to close, and the port it got.
// Throws CodedError DROID_PORT_IN_USE or DROID_INVALID_ARGUMENT.
std::pair<int, uint16_t> listen_tcp(const std::string & host, uint16_t port);

// Small messages leave at once, and a silent peer is noticed: after 30 s of idling it is asked every 10 s, 3 times.
void tune_socket(int fd);

bool send_all(int fd, const void * data, size_t size);
// Two pieces in one system call where they fit.
bool send_all(int fd, const void * head, size_t head_size, const void * data, size_t size);
bool recv_all(int fd, void * data, size_t size);

// 0 for ever.
void set_socket_receive_timeout(int fd, int seconds);

void close_socket(int fd);
// Wakes whoever is blocked on fd in another thread; the fd stays open.
void shutdown_socket(int fd);

}  // namespace droid::rpc
