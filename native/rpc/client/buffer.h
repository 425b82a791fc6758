#pragma once

#include <string>

#include "ggml-backend-impl.h"
#include "rpc/client/remote_device.h"

namespace droid::rpc {

// The buffer type of a remote device. Borrows the device, which its buffers do as well.
class RemoteBufferType {
  public:
    RemoteBufferType(RemoteDevice & device, ggml_backend_dev_t ggml_device, std::string name);
    RemoteBufferType(const RemoteBufferType &) = delete;
    RemoteBufferType & operator=(const RemoteBufferType &) = delete;

    ggml_backend_buffer_type_t get() { return &type_; }

  private:
    friend struct BufferTypeInterface;
    RemoteDevice & device_;
    const std::string name_;
    ggml_backend_buffer_type type_;
};

// The buffer that a tensor, or what it is a view of, has on a device; null when it lies elsewhere.
const RemoteBuffer * remote_buffer(const ggml_tensor & tensor, const RemoteDevice & device);

}  // namespace droid::rpc
