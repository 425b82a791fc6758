// What a remote device is given and what is read from it: tensor data, weights, graphs.

#include <algorithm>
#include <cstring>
#include <utility>

#include "ggml-impl.h"
#include "rpc/client/buffer.h"
#include "rpc/client/graph_writer.h"
#include "rpc/client/remote_device.h"
#include "rpc/graph_work.h"
#include "rpc/half.h"
#include "rpc/packing.h"

namespace droid::rpc {

namespace {

// Reads that follow a graph are as many as it has outputs; more are something else.
constexpr size_t most_predictions = 16;
constexpr uint64_t largest_prediction = 16 * 1024 * 1024;

// A shorter message is not worth looking through; a longer one is the state of a sequence.
constexpr uint64_t least_packed = 64;
constexpr uint64_t most_packed = 16 * 1024 * 1024;

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
    write_update(buffer, offset_in(buffer, tensor) + offset, size, data, true);
}

void RemoteDevice::write_activation(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data) {
    const uint64_t size = ggml_nbytes(&tensor);
    if (size == 0) return;
    const auto held = lock();
    changes();
    if (!extended_) {
        write_plain(buffer, tensor, false, data, 0, size);
    } else if (half_ && tensor.type == GGML_TYPE_F32 && size <= UINT32_MAX) {
        write_half(buffer, offset_in(buffer, tensor), size / sizeof(float), static_cast<const float *>(data));
    } else {
        write_update(buffer, offset_in(buffer, tensor), size, data, false);
    }
}

void RemoteDevice::write_update(const RemoteBuffer & buffer, uint64_t offset, uint64_t size, const void * data,
                                bool pack_it) {
    if (level_ < 1 || size > UINT32_MAX) {
        const WriteRequest request = {buffer.handle, offset, size};
        connection_.send_joined({Command::write, size}, &request, sizeof request, data, size);
        return;
    }
    UpdateRequest request = {buffer.handle,
                             offset,
                             static_cast<uint32_t>(size),
                             static_cast<uint32_t>(size),
                             static_cast<uint8_t>(Form::plain),
                             0};
    const uint64_t limit = std::min<uint64_t>(size - size / 8, max_packed_update);
    if (pack_it && size >= least_packed && size <= most_packed && pack(data, size, limit, packed_)) {
        request.form = static_cast<uint8_t>(Form::packed);
        request.encoded_size = static_cast<uint32_t>(packed_.size());
        data = packed_.data();
    }
    connection_.send_joined({Command::update, size}, &request, sizeof request, data, request.encoded_size);
}

void RemoteDevice::write_half(const RemoteBuffer & buffer, uint64_t offset, uint64_t count, const float * data) {
    const int exponent = half_exponent(data, count);
    halves_.resize(count);
    to_half(data, count, exponent, halves_.data());
    const uint64_t size = count * sizeof *data, encoded = count * sizeof(ggml_fp16_t);
    const UpdateRequest request = {buffer.handle,
                                   offset,
                                   static_cast<uint32_t>(size),
                                   static_cast<uint32_t>(encoded),
                                   static_cast<uint8_t>(Form::half),
                                   static_cast<uint8_t>(exponent)};
    connection_.send_joined({Command::update, size}, &request, sizeof request, halves_.data(), encoded);
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
                                          uint64_t size, bool half) const {
    const uint64_t start = offset_in(buffer, tensor) + offset;
    return {buffer.handle, start, size, half,
            extended_ ? bytes_of(ReadRequest{buffer.handle, start, size})
                      : bytes_of(GetTensorRequest{to_wire(tensor, buffer.handle), offset, size})};
}

Connection::Ticket RemoteDevice::ask_read(const Read & read, void * data, const void * stream) {
    const Asked asked = {read.half ? Command::read_half : extended_ ? Command::read : Command::get_tensor, read.size};
    return connection_.ask(asked, read.request.data(), read.request.size(),
                           {data, read.answer_size(), extended_, stream});
}

Connection::Ticket RemoteDevice::start_read(const void * stream, Read read, void * data) {
    Connection::Ticket ticket;
    const auto predicted = std::find_if(predictions_.begin(), predictions_.end(),
                                        [&](const Prediction & one) { return one.read.same_bytes(read); });
    if (predicted != predictions_.end()) {
        ticket = predicted->ticket;
        // What came already is in the prediction's memory; the rest comes to data.
        connection_.redirect(ticket, predicted->data.get(), data, read.answer_size(), stream);
        predictions_.erase(predicted);
    } else {
        ticket = ask_read(read, data, stream);
    }
    if (after_graph_ && reads_.size() < most_predictions && read.size <= largest_prediction) {
        reads_.push_back(std::move(read));
    }
    return ticket;
}

void RemoteDevice::read(const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data, uint64_t offset,
                        uint64_t size) {
    if (size == 0) return;
    // The scheduler's copies come here; what llama.cpp itself reads comes through a stream, or was not computed.
    const bool half = half_ && tensor.type == GGML_TYPE_F32 && tensor.op != GGML_OP_NONE && !tensor.view_src &&
                      !(tensor.flags & GGML_TENSOR_FLAG_OUTPUT) && offset == 0 && size == ggml_nbytes(&tensor);
    const auto held = lock();
    Read read = describe(buffer, tensor, offset, size, half);
    if (!half) {
        connection_.wait(start_read(nullptr, std::move(read), data));
        return;
    }
    half_answer_.resize(read.answer_size());
    connection_.wait(start_read(nullptr, std::move(read), half_answer_.data()));
    decode_half(size, static_cast<float *>(data));
}

void RemoteDevice::decode_half(uint64_t size, float * data) {
    int32_t exponent;
    std::memcpy(&exponent, half_answer_.data(), sizeof exponent);
    if (exponent < 0 || exponent > max_half_exponent) {
        connection_.fail_protocol({Command::read_half, size}, "an exponent of " + std::to_string(exponent));
    }
    const auto * halves = reinterpret_cast<const ggml_fp16_t *>(half_answer_.data() + sizeof exponent);
    from_half(halves, size / sizeof *data, exponent, data);
}

void RemoteDevice::read_async(const void * stream, const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data,
                              uint64_t offset, uint64_t size) {
    if (size == 0) return;
    const auto held = lock();
    last_read_ = std::max(last_read_, start_read(stream, describe(buffer, tensor, offset, size, false), data));
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
        send_graph();
        graph_uid_ = graph.uid;
    }
    counters_.graphs++;
    connection_.patience().graph_sent(graph_work_);
    connection_.adapt_user_timeout();
    if (same) predict_reads();
    after_graph_ = true;
    connection_.flush();
}

void RemoteDevice::send_graph() {
    const uint64_t size = graph_payload_.size();
    if (level_ >= 1 && size <= UINT32_MAX && pack(graph_payload_.data(), size, size, packed_)) {
        connection_.send({Command::packed_graph, graph_nodes_}, &size, sizeof size, packed_.data(), packed_.size());
    } else {
        connection_.send({Command::graph_compute, graph_nodes_}, nullptr, 0, graph_payload_.data(), size);
    }
}

// Asks in the same breath for what was read the last time after this graph. Nothing the worker does in between can make
// the answers wrong, and changes() drops them before anything else is sent.
void RemoteDevice::predict_reads() {
    std::vector<Read> reads;
    reads.swap(reads_);
    for (Read & read : reads) {
        auto data = std::make_unique<uint8_t[]>(read.answer_size());
        predictions_.reserve(predictions_.size() + 1);
        const auto ticket = ask_read(read, data.get(), nullptr);
        predictions_.push_back({std::move(read), ticket, std::move(data)});
    }
}

}  // namespace droid::rpc
