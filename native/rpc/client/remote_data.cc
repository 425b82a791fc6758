// What a remote device is given and what is read from it: tensor data, weights, graphs.

#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-impl.h"
#include "rpc/client/buffer.h"
#include "rpc/client/graph_writer.h"
#include "rpc/client/remote_device.h"
#include "rpc/graph_work.h"

namespace droid::rpc {

namespace {

// Reads that follow a graph are as many as it has outputs; more are something else.
constexpr size_t most_predictions = 16;
constexpr uint64_t largest_prediction = 16 * 1024 * 1024;

// Cached weights are asked for without data, so that nothing but this keeps a master from being gigabytes ahead.
constexpr uint64_t most_unconfirmed = 256 * 1024 * 1024;

uint64_t offset_in(const RemoteBuffer & buffer, const ggml_tensor & tensor) {
    return reinterpret_cast<uintptr_t>(tensor.data) - buffer.base;
}

template <typename T>
std::vector<uint8_t> bytes_of(const T & request) {
    const auto * bytes = reinterpret_cast<const uint8_t *>(&request);
    return std::vector<uint8_t>(bytes, bytes + sizeof request);
}

}  // namespace

void RemoteDevice::write(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data, uint64_t offset,
                         uint64_t size) {
    if (size == 0) return;
    const auto held = lock();
    changes();
    if (!extended_) {
        write_plain(buffer, tensor, false, data, offset, size);
        return;
    }
    const WriteRequest request = {buffer.handle, offset_in(buffer, tensor) + offset, size};
    connection_.send_joined({Command::write, size}, &request, sizeof request, data, size);
}

void RemoteDevice::write_plain(const RemoteBuffer & buffer, const ggml_tensor & tensor, bool cache, const void * data,
                               uint64_t offset, uint64_t size) {
    const SetTensorHeader request = {to_wire(tensor, buffer.handle), cache, offset};
    connection_.send({Command::set_tensor, size}, &request, sizeof request, data, size);
}

void RemoteDevice::write_weight(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data,
                                uint64_t offset, uint64_t size) {
    if (extended_) {
        const bool whole = !tensor.view_src && offset == 0 && size == ggml_nbytes(&tensor) && size > 0;
        if (!whole) {
            write(buffer, tensor, data, offset, size);
            counters_.weights_sent += size;
            return;
        }
        write_whole_weight(buffer, tensor, data, size);
        return;
    }
    if (size == 0) return;
    const bool cache = size > hash_threshold;
    if (cache) {
        const uint64_t hash = fnv1a(data, size);
        const auto held = lock();
        changes();
        const SetTensorHashRequest request = {to_wire(tensor, buffer.handle), offset, hash};
        uint8_t there = 0;
        const Asked asked = {Command::set_tensor_hash, size};
        connection_.patience().weight_reused(size);
        connection_.request(asked, &request, sizeof request, &there, sizeof there);
        if (there > 1) connection_.fail_protocol(asked, "neither yes nor no");
        if (there == 1) {
            counters_.weights_reused += size;
            return;
        }
    }
    const auto held = lock();
    changes();
    write_plain(buffer, tensor, cache, data, offset, size);
    counters_.weights_sent += size;
}

void RemoteDevice::write_whole_weight(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data,
                                      uint64_t size) {
    WeightRequest request = {to_wire(tensor, buffer.handle), {}};
    auto held = lock();
    changes();
    const auto offered = weights_.find(tensor.name);
    if (offered != weights_.end() && offered->second.size == size) {
        const Weight & weight = offered->second;
        std::copy(weight.hash.begin(), weight.hash.end(), request.sha256);
        if (weight.there) {
            connection_.patience().weight_reused(size);
            connection_.send({Command::use_weight, size}, &request, sizeof request);
            counters_.weights_reused += size;
            reused_unconfirmed_ += size;
            if (reused_unconfirmed_ >= most_unconfirmed) {
                reused_unconfirmed_ = 0;
                const DeviceRequest device = {0};
                DeviceMemoryAnswer answer = {};
                connection_.request({Command::get_device_memory}, &device, sizeof device, &answer, sizeof answer);
                set_memory(answer);
            }
            return;
        }
    }
    // Nobody has hashed the others, and the worker does so anyway.
    connection_.send({Command::put_weight, size}, &request, sizeof request, data, size);
    connection_.patience().weight_sent(size);
    counters_.weights_sent += size;
}

void RemoteDevice::fill(const RemoteBuffer & buffer, const ggml_tensor & tensor, uint8_t value, uint64_t offset,
                        uint64_t size) {
    if (size == 0) return;
    const auto held = lock();
    changes();
    const MemsetTensorRequest request = {to_wire(tensor, buffer.handle), offset, size, value};
    connection_.send({Command::memset_tensor, size}, &request, sizeof request);
}

// Reads

RemoteDevice::Read RemoteDevice::describe(const RemoteBuffer & buffer, const ggml_tensor & tensor, uint64_t offset,
                                          uint64_t size) const {
    const uint64_t start = offset_in(buffer, tensor) + offset;
    return {buffer.handle, start, size,
            extended_ ? bytes_of(ReadRequest{buffer.handle, start, size})
                      : bytes_of(GetTensorRequest{to_wire(tensor, buffer.handle), offset, size})};
}

Connection::Ticket RemoteDevice::ask_read(const Read & read, void * data, const void * stream) {
    const Asked asked = {extended_ ? Command::read : Command::get_tensor, read.size};
    return connection_.ask(asked, read.request.data(), read.request.size(), {data, read.size, extended_, stream});
}

Connection::Ticket RemoteDevice::start_read(const void * stream, const RemoteBuffer & buffer,
                                            const ggml_tensor & tensor, void * data, uint64_t offset, uint64_t size) {
    Read read = describe(buffer, tensor, offset, size);
    Connection::Ticket ticket;
    const auto predicted = std::find_if(predictions_.begin(), predictions_.end(),
                                        [&](const Prediction & one) { return one.read.same_bytes(read); });
    if (predicted != predictions_.end()) {
        ticket = predicted->ticket;
        // What came already is in the prediction's memory; the rest comes to data.
        connection_.redirect(ticket, predicted->data.get(), data, size, stream);
        predictions_.erase(predicted);
    } else {
        ticket = ask_read(read, data, stream);
    }
    if (after_graph_ && reads_.size() < most_predictions && size <= largest_prediction) {
        reads_.push_back(std::move(read));
    }
    return ticket;
}

void RemoteDevice::read(const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data, uint64_t offset,
                        uint64_t size) {
    if (size == 0) return;
    const auto held = lock();
    connection_.wait(start_read(nullptr, buffer, tensor, data, offset, size));
}

void RemoteDevice::read_async(const void * stream, const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data,
                              uint64_t offset, uint64_t size) {
    if (size == 0) return;
    const auto held = lock();
    last_read_ = std::max(last_read_, start_read(stream, buffer, tensor, data, offset, size));
}

void RemoteDevice::synchronize() {
    const auto held = lock();
    connection_.wait(last_read_);
}

void RemoteDevice::free_stream(const void * stream) noexcept {
    try {
        const std::lock_guard<std::mutex> held(connection_.mutex());
        connection_.forget_owner(stream);
    } catch (...) {
        // Only the mutex throws, and only when it is not one any more.
    }
}

// Graphs

void RemoteDevice::compute(const ggml_cgraph & graph) {
    if (graph.n_nodes == 0) return;
    const auto held = lock();
    changes();
    const bool same = graph.uid != 0 && graph.uid == graph_uid_;
    if (same) {
        const DeviceRequest request = {0};
        connection_.send({Command::graph_recompute, graph_nodes_}, &request, sizeof request);
    } else {
        graph_uid_ = 0;
        reads_.clear();
        weights_.clear();  // a worker that computes lets go of what was offered and not placed
        const auto handle_of = [this](const ggml_tensor & tensor) {
            const RemoteBuffer * buffer = remote_buffer(tensor, *this);
            return buffer ? buffer->handle : 0;
        };
        write_graph(graph, handle_of, graph_payload_);
        graph_nodes_ = static_cast<uint64_t>(graph.n_nodes);
        graph_work_ = graph_work(graph);
        connection_.send({Command::graph_compute, graph_nodes_}, nullptr, 0, graph_payload_.data(),
                         graph_payload_.size());
        graph_uid_ = graph.uid;
    }
    counters_.graphs++;
    connection_.patience().graph_sent(graph_work_);
    connection_.adapt_user_timeout();
    if (same) predict_reads();
    after_graph_ = true;
    connection_.flush();
}

// Asks in the same breath for what was read the last time after this graph. Nothing the worker does in between can make
// the answers wrong, and changes() drops them before anything else is sent.
void RemoteDevice::predict_reads() {
    std::vector<Read> reads;
    reads.swap(reads_);
    for (Read & read : reads) {
        auto data = std::make_unique<uint8_t[]>(read.size);
        predictions_.reserve(predictions_.size() + 1);
        const auto ticket = ask_read(read, data.get(), nullptr);
        predictions_.push_back({std::move(read), ticket, std::move(data)});
    }
}

}  // namespace droid::rpc
