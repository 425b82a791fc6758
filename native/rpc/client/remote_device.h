#pragma once

#include <array>
#include <chrono>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "ggml-backend-impl.h"
#include "rpc/client/connection.h"
#include "rpc/client/worker.h"
#include "rpc/protocol.h"

namespace droid::rpc {

// A buffer in a worker's memory.
struct RemoteBuffer {
    uint64_t handle = 0;
    uint64_t base = 0;  // an address over there
    uint64_t size = 0;
};

// Device 0 of a worker: what ggml asks of a device, as requests over a connection. Takes the connection's mutex in each
// call. Everything that comes back is checked here; what no worker would say ends the connection with
// DROID_WORKER_PROTOCOL. Throws CodedError as Worker says, except where noted.
class RemoteDevice {
  public:
    RemoteDevice(Connection & connection, WorkerCounters & counters);

    // HELLO and what does not change afterwards, in one round trip.
    void handshake();
    bool extended() const { return extended_; }
    bool holds_weights() const { return holds_weights_; }
    uint8_t level() const { return level_; }  // of the extension
    uint64_t alignment() const { return alignment_; }
    uint64_t max_size() const { return max_size_; }
    std::optional<CodedError> failure() const { return connection_.failure(); }
    std::optional<CodedError> allocation_failure() const;

    // Asks which of these the worker has, and does not wait for the answer: it reads what it has from its disk while
    // the master reads the vocabulary. Whatever is called next waits.
    void offer(const Manifest & weights);

    struct Memory {
        uint64_t free;
        uint64_t total;
    };
    Memory memory() const;  // as of the last time it was asked
    void refresh_memory();

    // Nothing when the worker has too little memory; allocation_failure() then says so.
    std::optional<RemoteBuffer> alloc(uint64_t size);
    void free(const RemoteBuffer & buffer) noexcept;
    void clear(const RemoteBuffer & buffer, uint8_t value);
    void init_tensor(const RemoteBuffer & buffer, const ggml_tensor & tensor);
    uint64_t alloc_size(const ggml_tensor & tensor);

    // tensor lies in buffer; offset and size are within the tensor.
    void write(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data, uint64_t offset,
               uint64_t size);
    // The whole of a tensor that another device computed; exactly, unless use_half() was called and it holds floats.
    void write_activation(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data);
    // A write that may be a whole tensor of weights.
    void write_weight(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data, uint64_t offset,
                      uint64_t size);
    void fill(const RemoteBuffer & buffer, const ggml_tensor & tensor, uint8_t value, uint64_t offset, uint64_t size);
    void read(const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data, uint64_t offset, uint64_t size);
    bool copy(const RemoteBuffer & src_buffer, const ggml_tensor & src, const RemoteBuffer & dst_buffer,
              const ggml_tensor & dst);

    // From now on floats that were computed travel as f16 from device to device. The worker's level is 1 or higher.
    void use_half() { half_ = true; }

    // Streams. data is filled once synchronize() has returned.
    void read_async(const void * stream, const RemoteBuffer & buffer, const ggml_tensor & tensor, void * data,
                    uint64_t offset, uint64_t size);
    // Waits for what was read, not for graphs: the worker carries out in order what it is sent, so that it may still
    // compute while its next inputs are on their way.
    void synchronize();
    void compute(const ggml_cgraph & graph);
    // What the stream reads and has not synchronised goes nowhere.
    void free_stream(const void * stream) noexcept;

  private:
    // What a read was: which bytes, and the request as it was sent.
    struct Read {
        uint64_t buffer;
        uint64_t offset;  // from its base
        uint64_t size;
        bool half;
        std::vector<uint8_t> request;

        bool same_bytes(const Read & other) const {
            return buffer == other.buffer && offset == other.offset && size == other.size && half == other.half;
        }
        uint64_t answer_size() const { return half ? sizeof(int32_t) + size / 2 : size; }
    };
    // A read that was sent because it followed the same graph the last time.
    struct Prediction {
        Read read;
        Connection::Ticket ticket;
        std::unique_ptr<uint8_t[]> data;
    };
    struct Weight {
        Sha256 hash;
        uint64_t size;
        bool there;  // on the worker
    };
    // Weights of which the worker has not said yet whether they are there.
    struct OpenOffer {
        Connection::Ticket ticket = 0;
        std::chrono::milliseconds extra{0};
        std::vector<Weight *> weights;  // in weights_
        std::vector<uint8_t> there;     // the answer
    };
    using AllocSizeKey = std::array<uint32_t, 2 + GGML_MAX_OP_PARAMS / sizeof(int32_t) + GGML_MAX_DIMS>;

    [[nodiscard]] std::unique_lock<std::mutex> lock();
    void close_offers();
    void changes() noexcept;
    Read describe(const RemoteBuffer & buffer, const ggml_tensor & tensor, uint64_t offset, uint64_t size,
                  bool half) const;
    // data has room for the answer to the read.
    Connection::Ticket start_read(const void * stream, Read read, void * data);
    void decode_half(uint64_t size, float * data);
    Connection::Ticket ask_read(const Read & read, void * data, const void * stream);
    void predict_reads();
    void write_update(const RemoteBuffer & buffer, uint64_t offset, uint64_t size, const void * data, bool pack_it);
    void write_half(const RemoteBuffer & buffer, uint64_t offset, uint64_t count, const float * data);
    void send_graph();
    void write_plain(const RemoteBuffer & buffer, const ggml_tensor & tensor, bool cache, const void * data,
                     uint64_t offset, uint64_t size);
    void write_whole_weight(const RemoteBuffer & buffer, const ggml_tensor & tensor, const void * data, uint64_t size);
    void set_memory(const DeviceMemoryAnswer & answer);

    Connection & connection_;
    WorkerCounters & counters_;
    bool extended_ = false;
    bool holds_weights_ = false;
    uint8_t level_ = 0;
    bool half_ = false;
    uint64_t alignment_ = 0;
    uint64_t max_size_ = 0;

    mutable std::mutex state_mutex_;  // of the two below, which any thread asks for
    Memory memory_ = {0, 0};
    std::optional<CodedError> allocation_failure_;

    std::unordered_map<std::string, Weight> weights_;
    std::deque<OpenOffer> open_offers_;
    uint64_t reused_unconfirmed_ = 0;
    std::map<AllocSizeKey, uint64_t> alloc_sizes_;

    uint64_t graph_uid_ = 0;  // of the graph that the worker holds; 0: none that can be named
    double graph_work_ = 0;
    uint64_t graph_nodes_ = 0;
    std::vector<uint8_t> graph_payload_;
    std::vector<uint8_t> packed_;
    std::vector<ggml_fp16_t> halves_;
    std::vector<uint8_t> half_answer_;
    bool after_graph_ = false;  // nothing but reads since the last graph
    std::vector<Read> reads_;   // those
    std::vector<Prediction> predictions_;
    Connection::Ticket last_read_ = 0;
};

}  // namespace droid::rpc
