#include "rpc/client/remote_device.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "rpc/client/graph_writer.h"

namespace droid::rpc {

namespace {

constexpr uint64_t plausible_memory = 1ull << 50;
constexpr uint64_t most_padding = 1ull << 32;  // of one tensor
constexpr size_t most_alloc_sizes = 8192;
constexpr uint64_t weight_rate = 50'000;  // bytes/ms that a worker looks up

bool is_power_of_two(uint64_t value) {
    return value != 0 && (value & (value - 1)) == 0;
}

}  // namespace

RemoteDevice::RemoteDevice(Connection & connection, WorkerCounters & counters)
    : connection_(connection), counters_(counters) {}

std::unique_lock<std::mutex> RemoteDevice::lock() {
    std::unique_lock<std::mutex> held(connection_.mutex());
    connection_.check();
    if (!open_offers_.empty()) close_offers();
    return held;
}

void RemoteDevice::handshake() {
    const auto held = lock();
    connection_.begin_handshake();
    const DeviceRequest device = {0};
    const Asked greeting = {Command::hello}, counting = {Command::device_count}, aligning = {Command::get_alignment},
                sizing = {Command::get_max_size}, measuring = {Command::get_device_memory};
    Capabilities ours = {};
    std::memcpy(ours.magic, extension_magic, sizeof ours.magic);
    ours.version = extension_version;
    ours.level = extension_level;
    HelloAnswer hello = {};
    uint32_t devices = 0;
    DeviceMemoryAnswer memory = {};
    const auto greeted = connection_.ask(greeting, &ours, sizeof ours, {&hello, sizeof hello});
    connection_.ask(counting, nullptr, 0, {&devices, sizeof devices});
    connection_.ask(aligning, &device, sizeof device, {&alignment_, sizeof alignment_});
    connection_.ask(sizing, &device, sizeof device, {&max_size_, sizeof max_size_});
    const auto last = connection_.ask(measuring, &device, sizeof device, {&memory, sizeof memory});

    connection_.wait(greeted);
    const std::string who = "The worker " + connection_.endpoint();
    const Capabilities & theirs = hello.capabilities;
    const bool ours_too = std::memcmp(theirs.magic, extension_magic, sizeof theirs.magic) == 0;
    if (ours_too && theirs.status == static_cast<uint8_t>(HelloStatus::busy)) {
        connection_.fail("DROID_WORKER_BUSY", who + " has as many masters as it takes");
    }
    if (ours_too && theirs.status == static_cast<uint8_t>(HelloStatus::shutting_down)) {
        connection_.fail("DROID_WORKER_LOST", who + " is shutting down");
    }
    if (hello.major != protocol_major || hello.minor > protocol_minor) {
        connection_.fail("DROID_VERSION_MISMATCH",
                         who + " speaks version " + std::to_string(hello.major) + "." + std::to_string(hello.minor) +
                             " of the RPC protocol, and this master " + std::to_string(protocol_major) + "." +
                             std::to_string(protocol_minor));
    }
    if (ours_too && theirs.status != static_cast<uint8_t>(HelloStatus::ok)) {
        connection_.fail_protocol(greeting, "an unknown status");
    }
    extended_ = ours_too && theirs.version == extension_version;
    if (extended_) level_ = std::min(theirs.level, extension_level);
    holds_weights_ = extended_ && theirs.holds_weights != 0;

    connection_.wait(last);
    if (devices == 0) connection_.fail_protocol(counting, "it has no device");
    if (!is_power_of_two(alignment_) || alignment_ > 4096) {
        connection_.fail_protocol(aligning, "an alignment of " + std::to_string(alignment_));
    }
    if (max_size_ == 0) connection_.fail_protocol(sizing, "no buffer can be made");
    set_memory(memory);
}

void RemoteDevice::set_memory(const DeviceMemoryAnswer & answer) {
    if (answer.free > answer.total || answer.total > plausible_memory) {
        connection_.fail_protocol({Command::get_device_memory},
                                  std::to_string(answer.free) + " of " + std::to_string(answer.total) + " bytes free");
    }
    const std::lock_guard<std::mutex> state(state_mutex_);
    memory_ = {answer.free, answer.total};
}

RemoteDevice::Memory RemoteDevice::memory() const {
    const std::lock_guard<std::mutex> state(state_mutex_);
    return memory_;
}

void RemoteDevice::refresh_memory() {
    const auto held = lock();
    const DeviceRequest request = {0};
    DeviceMemoryAnswer answer = {};
    connection_.request({Command::get_device_memory}, &request, sizeof request, &answer, sizeof answer);
    set_memory(answer);
}

std::optional<CodedError> RemoteDevice::allocation_failure() const {
    const std::lock_guard<std::mutex> state(state_mutex_);
    return allocation_failure_;
}

void RemoteDevice::offer(const Manifest & weights) {
    if (!extended_) return;
    const auto held = lock();
    auto next = weights.entries.begin();
    while (next != weights.entries.end()) {
        std::vector<Offer> offers;
        OpenOffer open;
        uint64_t bytes = 0;
        for (; next != weights.entries.end() && offers.size() < max_offers; ++next) {
            const auto & [name, entry] = *next;
            Offer & offer = offers.emplace_back();
            std::copy(entry.hash.begin(), entry.hash.end(), offer.sha256);
            offer.size = entry.size;
            bytes += entry.size;
            Weight & weight = weights_[name];
            weight = {entry.hash, entry.size, false};
            open.weights.push_back(&weight);
        }
        open.there.resize(offers.size());
        open.extra = std::chrono::milliseconds(bytes / weight_rate);
        OpenOffer & kept = open_offers_.emplace_back(std::move(open));
        const uint64_t size = offers.size() * sizeof(Offer);
        kept.ticket = connection_.ask({Command::offer, size}, nullptr, 0, {kept.there.data(), kept.there.size()},
                                      offers.data(), size);
    }
    connection_.flush();
}

void RemoteDevice::close_offers() {
    for (const OpenOffer & open : open_offers_) {
        connection_.wait(open.ticket, open.extra);
        for (size_t i = 0; i < open.there.size(); i++) {
            if (open.there[i] > 1) {
                connection_.fail_protocol({Command::offer, open.there.size() * sizeof(Offer)}, "neither yes nor no");
            }
            open.weights[i]->there = open.there[i] == 1;
        }
    }
    open_offers_.clear();
}

// Whatever may change what a read returns: predicted reads are worthless after it.
void RemoteDevice::changes() noexcept {
    for (const Prediction & prediction : predictions_) connection_.forget(prediction.ticket);
    predictions_.clear();
    after_graph_ = false;
}

std::optional<RemoteBuffer> RemoteDevice::alloc(uint64_t size) {
    const auto held = lock();
    changes();
    const Asked asked = {Command::alloc_buffer, size};
    const AllocBufferRequest request = {0, size};
    AllocBufferAnswer answer = {};
    connection_.request(asked, &request, sizeof request, &answer, sizeof answer);
    if (answer.buffer == 0) {
        const CodedError error("DROID_WORKER_OUT_OF_MEMORY", "The worker " + connection_.endpoint() +
                                                                 " has too little memory for a buffer of " +
                                                                 std::to_string(size) + " bytes");
        const std::lock_guard<std::mutex> state(state_mutex_);
        allocation_failure_ = error;
        return std::nullopt;
    }
    if (answer.size < size || answer.size - size > most_padding) {
        connection_.fail_protocol(asked, "a buffer of " + std::to_string(answer.size) + " bytes");
    }
    const BufferRequest base_request = {answer.buffer};
    uint64_t base = 0;
    connection_.request({Command::buffer_get_base}, &base_request, sizeof base_request, &base, sizeof base);
    if (base == 0 || base % alignment_ != 0 || base > UINTPTR_MAX - answer.size) {
        connection_.fail_protocol({Command::buffer_get_base}, "an address of " + std::to_string(base));
    }
    return RemoteBuffer{answer.buffer, base, answer.size};
}

void RemoteDevice::free(const RemoteBuffer & buffer) noexcept {
    try {
        const std::lock_guard<std::mutex> held(connection_.mutex());
        // A worker forgets its graph with a buffer of it.
        changes();
        reads_.clear();
        graph_uid_ = 0;
        if (connection_.failure()) return;
        const BufferRequest request = {buffer.handle};
        connection_.add({Command::free_buffer}, &request, sizeof request);
        connection_.flush_some();
    } catch (...) {
        // Out of memory here; over there the buffer goes with the connection.
    }
}

void RemoteDevice::clear(const RemoteBuffer & buffer, uint8_t value) {
    const auto held = lock();
    changes();
    const BufferClearRequest request = {buffer.handle, value};
    connection_.send({Command::buffer_clear, buffer.size}, &request, sizeof request);
}

void RemoteDevice::init_tensor(const RemoteBuffer & buffer, const ggml_tensor & tensor) {
    // A worker with a GPU pads quantized rows and clears the padding; the CPU's do not, nor do those of this package.
    if (extended_ || !ggml_is_quantized(tensor.type) || tensor.ne[0] % 512 == 0 || tensor.view_src) return;
    const auto held = lock();
    changes();
    const Tensor request = to_wire(tensor, buffer.handle);
    connection_.send({Command::init_tensor}, &request, sizeof request);
}

uint64_t RemoteDevice::alloc_size(const ggml_tensor & tensor) {
    const uint64_t bytes = ggml_nbytes(&tensor);
    const bool padded = ggml_is_quantized(tensor.type) && tensor.ne[0] % 512 != 0 && !tensor.view_src;
    if (extended_ || !(padded || ggml_op_alloc_size_may_expand(tensor.op))) return bytes;

    // Without the sources: llama.cpp reserves with the largest ones, and asking for each size that a growing KV cache
    // takes would wait for the worker in every ubatch.
    AllocSizeKey key = {static_cast<uint32_t>(tensor.type), static_cast<uint32_t>(tensor.op)};
    size_t next = 2;
    for (const int32_t parameter : tensor.op_params) key[next++] = static_cast<uint32_t>(parameter);
    for (const int64_t dimension : tensor.ne) key[next++] = static_cast<uint32_t>(dimension);

    const auto held = lock();
    const auto known = alloc_sizes_.find(key);
    if (known != alloc_sizes_.end()) return std::max(bytes, known->second);

    GetAllocSizeRequest request = {};
    request.tensor = to_wire(tensor, 0);
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (!tensor.src[i]) continue;
        request.srcs[i] = to_wire(*tensor.src[i], 0);
        request.srcs[i].id = static_cast<uint64_t>(i) + 2;
        request.tensor.src[i] = request.srcs[i].id;
    }
    uint64_t size = 0;
    const Asked asked = {Command::get_alloc_size, bytes};
    connection_.request(asked, &request, sizeof request, &size, sizeof size);
    if (size < bytes || size - bytes > most_padding) {
        connection_.fail_protocol(asked, std::to_string(size) + " bytes");
    }
    if (alloc_sizes_.size() >= most_alloc_sizes) alloc_sizes_.clear();
    alloc_sizes_[key] = size;
    return size;
}

bool RemoteDevice::copy(const RemoteBuffer & src_buffer, const ggml_tensor & src, const RemoteBuffer & dst_buffer,
                        const ggml_tensor & dst) {
    const auto held = lock();
    changes();
    const CopyTensorRequest request = {to_wire(src, src_buffer.handle), to_wire(dst, dst_buffer.handle)};
    uint8_t done = 0;
    const Asked asked = {Command::copy_tensor, ggml_nbytes(&src)};
    connection_.request(asked, &request, sizeof request, &done, sizeof done);
    if (done > 1) connection_.fail_protocol(asked, "neither yes nor no");
    return done == 1;
}

}  // namespace droid::rpc
