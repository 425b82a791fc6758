#include "rpc/client/interrupt.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

namespace droid::rpc {

Interrupt::Interrupt() {
    if (pipe(pipe_) != 0) throw std::system_error(errno, std::generic_category(), "Cannot make a pipe");
    for (const int fd : pipe_) {
        fcntl(fd, F_SETFD, FD_CLOEXEC);
        fcntl(fd, F_SETFL, O_NONBLOCK);
    }
}

Interrupt::~Interrupt() {
    close(pipe_[0]);
    close(pipe_[1]);
}

void Interrupt::trip() {
    if (tripped_.exchange(true)) return;
    ssize_t n;
    do {
        n = write(pipe_[1], "", 1);
    } while (n < 0 && errno == EINTR);
}

}  // namespace droid::rpc
