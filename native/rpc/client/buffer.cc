#include "rpc/client/buffer.h"

#include <algorithm>
#include <memory>
#include <utility>
#include <vector>

#include "ggml-impl.h"

namespace droid::rpc {

namespace {

struct BufferContext {
    RemoteDevice & device;
    RemoteBuffer remote;
};

BufferContext & context_of(ggml_backend_buffer_t buffer) {
    return *static_cast<BufferContext *>(buffer->context);
}

// ggml-alloc.c calls these, and C has no way for an exception.

void free_buffer(ggml_backend_buffer_t buffer) noexcept {
    auto * context = &context_of(buffer);
    context->device.free(context->remote);
    delete context;
}

void * get_base(ggml_backend_buffer_t buffer) noexcept {
    return reinterpret_cast<void *>(static_cast<uintptr_t>(context_of(buffer).remote.base));
}

ggml_status init_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor) noexcept {
    try {
        context_of(buffer).device.init_tensor(context_of(buffer).remote, *tensor);
        return GGML_STATUS_SUCCESS;
    } catch (const std::exception & error) {
        GGML_LOG_ERROR("%s\n", error.what());
        return GGML_STATUS_FAILED;
    }
}

// C++ calls these, and llama.cpp passes exceptions on.

void memset_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, uint8_t value, size_t offset, size_t size) {
    context_of(buffer).device.fill(context_of(buffer).remote, *tensor, value, offset, size);
}

void set_tensor(ggml_backend_buffer_t buffer, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    BufferContext & context = context_of(buffer);
    if (buffer->usage == GGML_BACKEND_BUFFER_USAGE_WEIGHTS) {
        context.device.write_weight(context.remote, *tensor, data, offset, size);
    } else {
        context.device.write(context.remote, *tensor, data, offset, size);
    }
}

void get_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * tensor, void * data, size_t offset, size_t size) {
    context_of(buffer).device.read(context_of(buffer).remote, *tensor, data, offset, size);
}

bool cpy_tensor(ggml_backend_buffer_t buffer, const ggml_tensor * src, ggml_tensor * dst) {
    BufferContext & context = context_of(buffer);
    const RemoteBuffer * from = remote_buffer(*src, context.device);
    if (from && context.device.copy(*from, *src, context.remote, *dst)) return true;
    // ggml would do the same with a malloc() that it does not free when one of the two throws.
    std::vector<uint8_t> data(ggml_nbytes(src));
    ggml_backend_tensor_get(src, data.data(), 0, data.size());
    ggml_backend_tensor_set(dst, data.data(), 0, data.size());
    return true;
}

void clear(ggml_backend_buffer_t buffer, uint8_t value) {
    context_of(buffer).device.clear(context_of(buffer).remote, value);
}

constexpr ggml_backend_buffer_i buffer_interface = {
    /* .free_buffer   = */ free_buffer,
    /* .get_base      = */ get_base,
    /* .init_tensor   = */ init_tensor,
    /* .memset_tensor = */ memset_tensor,
    /* .set_tensor    = */ set_tensor,
    /* .get_tensor    = */ get_tensor,
    /* .set_tensor_2d = */ nullptr,
    /* .get_tensor_2d = */ nullptr,
    /* .cpy_tensor    = */ cpy_tensor,
    /* .clear         = */ clear,
    /* .reset         = */ nullptr,
};

}  // namespace

struct BufferTypeInterface {
    static RemoteBufferType & self(ggml_backend_buffer_type_t type) {
        return *static_cast<RemoteBufferType *>(type->context);
    }

    static const char * get_name(ggml_backend_buffer_type_t type) noexcept { return self(type).name_.c_str(); }

    static ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) noexcept {
        RemoteDevice & device = self(type).device_;
        try {
            const auto remote = device.alloc(size);
            if (!remote) {
                GGML_LOG_ERROR("%s\n", device.allocation_failure()->what());
                return nullptr;
            }
            try {
                auto context = std::make_unique<BufferContext>(BufferContext{device, *remote});
                auto * buffer = ggml_backend_buffer_init(type, buffer_interface, context.get(), remote->size);
                context.release();
                return buffer;
            } catch (...) {
                device.free(*remote);
                throw;
            }
        } catch (const std::exception & error) {
            GGML_LOG_ERROR("%s\n", error.what());
            return nullptr;
        }
    }

    static size_t get_alignment(ggml_backend_buffer_type_t type) noexcept { return self(type).device_.alignment(); }

    static size_t get_max_size(ggml_backend_buffer_type_t type) noexcept {
        return static_cast<size_t>(std::min<uint64_t>(self(type).device_.max_size(), SIZE_MAX));
    }

    static size_t get_alloc_size(ggml_backend_buffer_type_t type, const ggml_tensor * tensor) noexcept {
        try {
            return static_cast<size_t>(self(type).device_.alloc_size(*tensor));
        } catch (const std::exception & error) {
            GGML_LOG_ERROR("%s\n", error.what());
            return ggml_nbytes(tensor);
        }
    }
};

RemoteBufferType::RemoteBufferType(RemoteDevice & device, ggml_backend_dev_t ggml_device, std::string name)
    : device_(device),
      name_(std::move(name)),
      type_{{BufferTypeInterface::get_name, BufferTypeInterface::alloc_buffer, BufferTypeInterface::get_alignment,
             BufferTypeInterface::get_max_size, BufferTypeInterface::get_alloc_size, nullptr},
            ggml_device,
            this} {}

const RemoteBuffer * remote_buffer(const ggml_tensor & tensor, const RemoteDevice & device) {
    const ggml_backend_buffer_t buffer = tensor.view_src ? tensor.view_src->buffer : tensor.buffer;
    if (!buffer || buffer->iface.free_buffer != free_buffer) return nullptr;
    const BufferContext & context = context_of(buffer);
    return &context.device == &device ? &context.remote : nullptr;
}

}  // namespace droid::rpc
