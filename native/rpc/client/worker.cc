#include "rpc/client/worker.h"

#include <cstring>
#include <utility>
#include <vector>

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "ggml-impl.h"
#include "rpc/client/buffer.h"
#include "rpc/client/connection.h"
#include "rpc/client/remote_device.h"
#include "rpc/server/op_check.h"

namespace droid::rpc {

namespace {

// llama.cpp tells devices apart by their names.
std::string unique_name() {
    static std::atomic<unsigned> next{0};
    return "RPC" + std::to_string(next++);
}

ggml_guid_t backend_guid() {
    static ggml_guid guid = {0x64, 0x72, 0x6f, 0x69, 0x64, 0x2d, 0x6c, 0x6c,
                             0x61, 0x6d, 0x61, 0x2d, 0x72, 0x70, 0x63, 0x01};
    return &guid;
}

}  // namespace

struct Worker::Impl {
    Impl(std::string endpoint, WorkerAddress address, const WorkerTimeouts & timeouts,
         std::shared_ptr<Interrupt> interrupt)
        : connection(std::move(endpoint), std::move(address), timeouts,
                     interrupt ? std::move(interrupt) : std::make_shared<Interrupt>(), counters),
          remote(connection, counters),
          name(unique_name()),
          buffer_type(remote, &device, name + "[" + connection.endpoint() + "]") {
        reg = {GGML_BACKEND_API_VERSION, {reg_name, reg_device_count, reg_device, reg_proc_address}, this};
        device.iface = {dev_name,          dev_description, dev_memory, dev_type, dev_props,
                        dev_init,          dev_buffer_type, nullptr,    nullptr,  dev_supports_op,
                        dev_supports_buft, nullptr,         nullptr,    nullptr,  nullptr};
        device.reg = &reg;
        device.context = this;
    }

    // Registry: this device alone.
    static const char * reg_name(ggml_backend_reg_t) noexcept { return "RPC"; }
    static size_t reg_device_count(ggml_backend_reg_t) noexcept { return 1; }
    static ggml_backend_dev_t reg_device(ggml_backend_reg_t reg, size_t) noexcept {
        return &static_cast<Impl *>(reg->context)->device;
    }
    static void * reg_proc_address(ggml_backend_reg_t, const char *) noexcept { return nullptr; }

    // Device
    static Impl & of(ggml_backend_dev_t device) { return *static_cast<Impl *>(device->context); }
    static const char * dev_name(ggml_backend_dev_t device) noexcept { return of(device).name.c_str(); }
    static const char * dev_description(ggml_backend_dev_t device) noexcept {
        return of(device).connection.endpoint().c_str();
    }
    static void dev_memory(ggml_backend_dev_t device, size_t * free, size_t * total) noexcept {
        try {
            of(device).remote.refresh_memory();
        } catch (const std::exception &) {
            // What it had is the best that can be said; the next command fails.
        }
        last_memory(device, free, total);
    }
    static void last_memory(ggml_backend_dev_t device, size_t * free, size_t * total) noexcept {
        const RemoteDevice::Memory memory = of(device).remote.memory();
        *free = static_cast<size_t>(memory.free);
        *total = static_cast<size_t>(memory.total);
    }
    static enum ggml_backend_dev_type dev_type(ggml_backend_dev_t) noexcept { return GGML_BACKEND_DEVICE_TYPE_GPU; }
    static void dev_props(ggml_backend_dev_t device, ggml_backend_dev_props * props) noexcept {
        props->name = dev_name(device);
        props->description = dev_description(device);
        props->type = dev_type(device);
        last_memory(device, &props->memory_free, &props->memory_total);
        // Without events, so that llama.cpp does not keep four copies of the inputs and compute buffers for its
        // pipeline parallelism: requests are in order, and synchronize() does not wait for graphs.
        props->caps = {/* .async = */ true, /* .host_buffer = */ false, /* .buffer_from_host_ptr = */ false,
                       /* .events = */ false, /* .mmap_support = */ true};
    }
    static ggml_backend_buffer_type_t dev_buffer_type(ggml_backend_dev_t device) noexcept {
        return of(device).buffer_type.get();
    }
    static bool dev_supports_op(ggml_backend_dev_t, const ggml_tensor * op) noexcept {
        // Workers compute on their CPU, and only what they can check before.
        static const ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
        return op_allowed(op->op) && ggml_backend_dev_supports_op(cpu, op);
    }
    static bool dev_supports_buft(ggml_backend_dev_t device, ggml_backend_buffer_type_t type) noexcept {
        return type == of(device).buffer_type.get();
    }
    static ggml_backend_t dev_init(ggml_backend_dev_t device, const char *) noexcept {
        auto * backend = new (std::nothrow) ggml_backend{};
        if (!backend) return nullptr;
        backend->guid = backend_guid();
        backend->iface.get_name = backend_name;
        backend->iface.free = backend_free;
        backend->iface.set_tensor_async = backend_set_tensor;
        backend->iface.get_tensor_async = backend_get_tensor;
        backend->iface.cpy_tensor_async = backend_copy_tensor;
        backend->iface.synchronize = backend_synchronize;
        backend->iface.graph_compute = backend_compute;
        backend->device = device;
        backend->context = &of(device);
        return backend;
    }

    // Stream: in the order of the calls, as the connection is.
    static Impl & of(ggml_backend_t backend) { return *static_cast<Impl *>(backend->context); }
    static const char * backend_name(ggml_backend_t backend) noexcept { return of(backend).name.c_str(); }
    static void backend_free(ggml_backend_t backend) noexcept {
        of(backend).remote.free_stream(backend);
        delete backend;
    }
    static void backend_set_tensor(ggml_backend_t, ggml_tensor * tensor, const void * data, size_t offset,
                                   size_t size) {
        ggml_backend_tensor_set(tensor, data, offset, size);
    }
    static void backend_get_tensor(ggml_backend_t backend, const ggml_tensor * tensor, void * data, size_t offset,
                                   size_t size) {
        RemoteDevice & remote = of(backend).remote;
        const RemoteBuffer * buffer = remote_buffer(*tensor, remote);
        if (buffer) {
            remote.read_async(backend, *buffer, *tensor, data, offset, size);
        } else {
            ggml_backend_tensor_get(tensor, data, offset, size);
        }
    }
    // What another device computed, after it has; the scheduler copies inputs another way. What this does not take, it
    // copies like those.
    static bool backend_copy_tensor(ggml_backend_t, ggml_backend_t to, const ggml_tensor * src, ggml_tensor * dst) {
        RemoteDevice & remote = of(to).remote;
        const RemoteBuffer * buffer = remote_buffer(*dst, remote);
        const ggml_backend_buffer_t from = src->view_src ? src->view_src->buffer : src->buffer;
        const bool computed = src->op != GGML_OP_NONE && !src->view_src && !(src->flags & GGML_TENSOR_FLAG_INPUT);
        if (!buffer || !from || !computed || !ggml_is_contiguous(src) || !ggml_are_same_layout(src, dst)) return false;
        if (ggml_backend_buffer_is_host(from)) {
            remote.write_activation(*buffer, *dst, src->data);
        } else {
            std::vector<uint8_t> data(ggml_nbytes(src));
            ggml_backend_tensor_get(src, data.data(), 0, data.size());
            remote.write_activation(*buffer, *dst, data.data());
        }
        return true;
    }
    static void backend_synchronize(ggml_backend_t backend) { of(backend).remote.synchronize(); }
    static ggml_status backend_compute(ggml_backend_t backend, ggml_cgraph * graph) {
        of(backend).remote.compute(*graph);
        return GGML_STATUS_SUCCESS;
    }

    WorkerCounters counters;
    Connection connection;
    RemoteDevice remote;
    const std::string name;
    ggml_backend_reg reg;
    ggml_backend_device device;
    RemoteBufferType buffer_type;
};

Worker::Worker(std::string endpoint, WorkerAddress address, const WorkerTimeouts & timeouts,
               std::shared_ptr<Interrupt> interrupt, std::function<void(const CodedError &)> on_lost)
    : impl_(std::make_unique<Impl>(std::move(endpoint), std::move(address), timeouts, std::move(interrupt))) {
    impl_->remote.handshake();
    impl_->connection.end_handshake(std::move(on_lost));
}

Worker::~Worker() = default;

const std::string & Worker::endpoint() const {
    return impl_->connection.endpoint();
}

ggml_backend_dev_t Worker::device() const {
    return &impl_->device;
}

const WorkerCounters & Worker::counters() const {
    return impl_->counters;
}

bool Worker::extended() const {
    return impl_->remote.extended();
}

void Worker::use_half() {
    if (impl_->remote.level() >= 1) return impl_->remote.use_half();
    throw CodedError("DROID_INVALID_ARGUMENT",
                     "The worker " + endpoint() + " cannot exchange activations as f16: it is " +
                         (extended() ? "of an older version of this package" : "not one of this package") +
                         ". Update it, or leave activations at f32.");
}

bool Worker::holds_weights() const {
    return impl_->remote.holds_weights();
}

void Worker::offer(const Manifest & weights) {
    impl_->remote.offer(weights);
}

std::optional<CodedError> Worker::failure() const {
    return impl_->connection.failure();
}

std::optional<CodedError> Worker::allocation_failure() const {
    return impl_->remote.allocation_failure();
}

}  // namespace droid::rpc
