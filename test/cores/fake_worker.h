#pragma once

// A worker in a thread of the test, which does as it is told: it keeps bytes and computes nothing, and at a chosen
// point it misbehaves.

#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <tuple>
#include <utility>
#include <vector>

#include "blocking_socket.h"
#include "rpc/protocol.h"
#include "rpc/socket.h"

namespace droid::test {

using droid::rpc::Command;

class FakeWorker {
  public:
    using Bytes = std::vector<uint8_t>;
    // True when the command is dealt with; else the worker does what an honest one does.
    using Script = std::function<bool(FakeWorker &, Command, const Bytes & payload, int index)>;

    // level: of the extension.
    explicit FakeWorker(bool extended, Script script = {}, uint8_t level = 0)
        : extended_(extended), level_(level), script_(std::move(script)) {
        std::tie(listener_, port) = droid::rpc::listen_tcp("127.0.0.1", 0);
        thread_ = std::thread([this] { serve(); });
    }
    // At the other end of a socket that is connected already.
    FakeWorker(droid::rpc::OwnedSocket socket, bool extended, Script script = {})
        : extended_(extended), level_(0), script_(std::move(script)), client_(socket.release()) {
        thread_ = std::thread([this] { serve_client(client_); });
    }
    ~FakeWorker() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            if (client_ >= 0) droid::rpc::shutdown_socket(client_);
        }
        changed_.notify_all();
        if (listener_ >= 0) droid::rpc::shutdown_socket(listener_);
        thread_.join();
        if (listener_ >= 0) close(listener_);
    }

    uint16_t port = 0;

    std::vector<Command> log() {
        const std::lock_guard<std::mutex> lock(mutex_);
        return log_;
    }
    void wait_for_commands(size_t count) {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [&] { return log_.size() >= count || ended_; });
    }

    // For scripts
    void answer(const void * data, size_t size) {
        const uint64_t length = size;
        send_all(client_, &length, sizeof length, data, size);
    }
    template <typename T>
    void answer(const T & value) {
        answer(&value, sizeof value);
    }
    void raw(const void * data, size_t size) { send_all(client_, data, size); }
    void notice(uint32_t reason, const std::string & text) {
        const droid::rpc::Notice head = {reason, static_cast<uint32_t>(text.size())};
        Bytes whole(sizeof droid::rpc::notice_size + sizeof head);
        std::memcpy(whole.data(), &droid::rpc::notice_size, sizeof droid::rpc::notice_size);
        std::memcpy(whole.data() + sizeof droid::rpc::notice_size, &head, sizeof head);
        whole.insert(whole.end(), text.begin(), text.end());
        raw(whole.data(), whole.size());
    }
    void hang_up() { hung_up_ = true; }
    // Neither reads nor answers until the test is over.
    void freeze() {
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return stopping_; });
        hung_up_ = true;
    }
    void reply_in_pieces(size_t piece, std::chrono::milliseconds pause) {
        piece_ = piece;
        pause_ = pause;
    }
    // What an honest worker answers; nothing for commands without an answer.
    Bytes honest(Command command, const Bytes & payload);
    bool answers(Command command) const;
    void send_honest(Command command, const Bytes & payload) {
        const Bytes body = honest(command, payload);
        if (!answers(command)) return;
        const uint64_t size = body.size();
        Bytes whole(sizeof size);
        std::memcpy(whole.data(), &size, sizeof size);
        whole.insert(whole.end(), body.begin(), body.end());
        for (size_t i = 0; i < whole.size() && piece_ > 0; i += piece_) {
            raw(whole.data() + i, std::min(piece_, whole.size() - i));
            std::this_thread::sleep_for(pause_);
        }
        if (piece_ == 0) raw(whole.data(), whole.size());
    }

  private:
    void serve() {
        int fd;
        do {
            fd = accept(listener_, nullptr, nullptr);
        } while (fd < 0 && errno == EINTR);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            client_ = fd;
            if (stopping_ && fd >= 0) droid::rpc::shutdown_socket(fd);
        }
        if (fd >= 0) droid::rpc::tune_socket(fd);
        serve_client(fd);
    }

    void serve_client(int fd) {
        int index = 0;
        while (fd >= 0 && !hung_up_) {
            uint8_t command;
            uint64_t size;
            if (!recv_all(fd, &command, 1) || !recv_all(fd, &size, sizeof size)) break;
            Bytes payload(size);
            if (!recv_all(fd, payload.data(), size)) break;
            {
                const std::lock_guard<std::mutex> lock(mutex_);
                log_.push_back(static_cast<Command>(command));
            }
            changed_.notify_all();
            const auto which = static_cast<Command>(command);
            if (!script_ || !script_(*this, which, payload, index)) send_honest(which, payload);
            index++;
        }
        const std::lock_guard<std::mutex> lock(mutex_);
        ended_ = true;
        if (fd >= 0) close(fd);
        client_ = -1;
        changed_.notify_all();
    }

    const bool extended_;
    const uint8_t level_;
    const Script script_;
    int listener_ = -1;
    int client_ = -1;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool stopping_ = false;
    bool ended_ = false;
    bool hung_up_ = false;
    size_t piece_ = 0;
    std::chrono::milliseconds pause_{0};
    std::vector<Command> log_;
    std::map<uint64_t, Bytes> buffers_;
    uint64_t next_ = 1;
    uint64_t compute_us_ = 0;
    std::thread thread_;

    static constexpr uint64_t base_of(uint64_t handle) { return handle << 32; }
    uint8_t * at(uint64_t address) { return buffers_.at(address >> 32).data() + (address & 0xffffffff); }
};

inline bool FakeWorker::answers(Command command) const {
    switch (command) {
        case Command::free_buffer:
        case Command::buffer_clear:
        case Command::set_tensor:
        case Command::graph_compute:
        case Command::graph_recompute:
        case Command::init_tensor:
        case Command::memset_tensor:
        case Command::write:
        case Command::update:
        case Command::packed_graph:
        case Command::put_weight:
        case Command::use_weight: return false;
        default: return true;
    }
}

inline FakeWorker::Bytes FakeWorker::honest(Command command, const Bytes & payload) {
    using namespace droid::rpc;
    const auto as = [&payload](auto & request) { std::memcpy(&request, payload.data(), sizeof request); };
    const auto bytes = [](const auto & value) {
        const auto * p = reinterpret_cast<const uint8_t *>(&value);
        return Bytes(p, p + sizeof value);
    };
    switch (command) {
        case Command::hello: {
            HelloAnswer hello = {protocol_major, protocol_minor, protocol_patch, 0, {}};
            if (extended_) {
                std::memcpy(hello.capabilities.magic, extension_magic, sizeof extension_magic);
                hello.capabilities.version = extension_version;
                hello.capabilities.level = level_;
            }
            return bytes(hello);
        }
        case Command::device_count: return bytes(uint32_t{1});
        case Command::get_alignment: return bytes(uint64_t{32});
        case Command::get_max_size: return bytes(uint64_t{1} << 40);
        case Command::get_device_memory: return bytes(DeviceMemoryAnswer{1 << 30, 2u << 30});
        case Command::alloc_buffer: {
            AllocBufferRequest request;
            as(request);
            buffers_[next_].resize(request.size);
            return bytes(AllocBufferAnswer{next_++, request.size});
        }
        case Command::buffer_get_base: {
            BufferRequest request;
            as(request);
            return bytes(base_of(request.buffer));
        }
        case Command::free_buffer: {
            BufferRequest request;
            as(request);
            buffers_.erase(request.buffer);
            return {};
        }
        case Command::buffer_clear: {
            BufferClearRequest request;
            as(request);
            Bytes & buffer = buffers_.at(request.buffer);
            std::fill(buffer.begin(), buffer.end(), request.value);
            return {};
        }
        case Command::set_tensor: {
            SetTensorHeader request;
            as(request);
            std::memcpy(at(request.tensor.data + request.offset), payload.data() + sizeof request,
                        payload.size() - sizeof request);
            return {};
        }
        case Command::get_tensor: {
            GetTensorRequest request;
            as(request);
            const uint8_t * data = at(request.tensor.data + request.offset);
            return Bytes(data, data + request.size);
        }
        case Command::memset_tensor: {
            MemsetTensorRequest request;
            as(request);
            std::memset(at(request.tensor.data + request.offset), request.value, request.size);
            return {};
        }
        case Command::copy_tensor: return bytes(uint8_t{0});  // "cannot": the master reads and writes
        case Command::get_alloc_size: {
            GetAllocSizeRequest request;
            as(request);
            return bytes(uint64_t{1} << 20);
        }
        case Command::set_tensor_hash: return bytes(uint8_t{0});
        case Command::graph_compute:
        case Command::packed_graph:
        case Command::graph_recompute: compute_us_ += 7; return {};
        case Command::write: {
            WriteRequest request;
            for (size_t read = 0; read < payload.size(); read += request.size) {
                std::memcpy(&request, payload.data() + read, sizeof request);
                read += sizeof request;
                std::memcpy(at(base_of(request.buffer) + request.offset), payload.data() + read, request.size);
            }
            return {};
        }
        case Command::read: {
            ReadRequest request;
            as(request);
            Bytes answer = bytes(compute_us_);
            const uint8_t * data = at(base_of(request.buffer) + request.offset);
            answer.insert(answer.end(), data, data + request.size);
            return answer;
        }
        case Command::read_half: {
            ReadRequest request;
            as(request);
            Bytes answer = bytes(HalfAnswer{compute_us_, 0});
            answer.resize(answer.size() + request.size / 2);  // zeros; updates are not kept
            return answer;
        }
        case Command::offer: {
            Bytes answer(payload.size() / sizeof(Offer));
            for (size_t i = 0; i < answer.size(); i++) answer[i] = payload[i * sizeof(Offer)] == 1;  // by its hash
            return answer;
        }
        case Command::put_weight: {
            WeightRequest request;
            as(request);
            std::memcpy(at(request.tensor.data), payload.data() + sizeof request, payload.size() - sizeof request);
            return {};
        }
        case Command::use_weight: {
            WeightRequest request;
            as(request);
            std::memset(at(request.tensor.data), 'w',
                        ggml_row_size(static_cast<ggml_type>(request.tensor.type), request.tensor.ne[0]));
            return {};
        }
        default: return {};
    }
}

}  // namespace droid::test
