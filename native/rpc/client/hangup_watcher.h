#pragma once

#include <pthread.h>

#include <functional>

namespace droid::rpc {

// A thread that waits for the peer of a socket to hang up, since nobody else looks while the connection idles.
class HangupWatcher {
  public:
    // on_hangup comes at most once, from that thread. fd is borrowed.
    HangupWatcher(int fd, std::function<void()> on_hangup);
    ~HangupWatcher();  // waits for the thread
    HangupWatcher(const HangupWatcher &) = delete;
    HangupWatcher & operator=(const HangupWatcher &) = delete;

  private:
    static void * run(void * self);
    void watch() noexcept;

    const int fd_;
    const std::function<void()> on_hangup_;
    int wake_[2];
    pthread_t thread_;
};

}  // namespace droid::rpc
