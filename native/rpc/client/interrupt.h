#pragma once

#include <atomic>

namespace droid::rpc {

// A signal that ends waits for the network: whoever waits polls fd() beside its socket. Once tripped it stays so.
class Interrupt {
  public:
    Interrupt();
    ~Interrupt();
    Interrupt(const Interrupt &) = delete;
    Interrupt & operator=(const Interrupt &) = delete;

    void trip();  // from any thread
    bool tripped() const { return tripped_; }
    int fd() const { return pipe_[0]; }  // readable once tripped

  private:
    std::atomic<bool> tripped_{false};
    int pipe_[2];
};

}  // namespace droid::rpc
