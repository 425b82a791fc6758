#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "ggml-backend.h"
#include "link.h"

namespace droid::rpc {

// A worker as a ggml device. While it exists, its connection stays open; models and contexts on the device must be
// freed before it.
class Worker {
  public:
    // Connects; throws CodedError DROID_ENDPOINT_* naming endpoint.
    Worker(const std::string & endpoint, const std::string & host, uint16_t port);
    ~Worker();

    const std::string & endpoint() const { return endpoint_; }
    ggml_backend_dev_t device() const { return device_; }
    const LinkCounters & counters() const { return link_.counters(); }

    // Makes every wait for the worker fail at once, for good; from any thread.
    void interrupt() { link_.interrupt(); }

  private:
    std::string endpoint_;
    Link link_;
    std::shared_ptr<void> connection_;
    ggml_backend_dev_t device_ = nullptr;
};

}  // namespace droid::rpc
