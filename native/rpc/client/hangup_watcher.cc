#include "rpc/client/hangup_watcher.h"

#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <system_error>
#include <utility>

namespace droid::rpc {

namespace {

#ifdef POLLRDHUP
constexpr short hangup = POLLRDHUP;
#else
constexpr short hangup = 0;  // POLLHUP comes unasked
#endif

constexpr size_t stack_size = 512 * 1024;  // a phone has little memory to give away for a thread that sleeps

}  // namespace

HangupWatcher::HangupWatcher(int fd, std::function<void()> on_hangup) : fd_(fd), on_hangup_(std::move(on_hangup)) {
    if (pipe(wake_) != 0) throw std::system_error(errno, std::generic_category(), "Cannot make a pipe");
    for (const int end : wake_) fcntl(end, F_SETFD, FD_CLOEXEC);

    // Signals are for the threads of the host process.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, stack_size);
    const int error = pthread_create(&thread_, &attributes, &HangupWatcher::run, this);
    pthread_attr_destroy(&attributes);
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (error != 0) {
        close(wake_[0]);
        close(wake_[1]);
        throw std::system_error(error, std::generic_category(), "Cannot start a thread");
    }
}

HangupWatcher::~HangupWatcher() {
    close(wake_[1]);  // the other end reads as hung up
    pthread_join(thread_, nullptr);
    close(wake_[0]);
}

void * HangupWatcher::run(void * self) {
    static_cast<HangupWatcher *>(self)->watch();
    return nullptr;
}

void HangupWatcher::watch() noexcept {
    for (;;) {
        pollfd waiting[2] = {{fd_, hangup, 0}, {wake_[0], POLLIN, 0}};
        if (poll(waiting, 2, -1) < 0) {
            if (errno == EINTR) continue;
            return;
        }
        if (waiting[1].revents) return;
        if (waiting[0].revents) {
            on_hangup_();
            return;
        }
    }
}

}  // namespace droid::rpc
