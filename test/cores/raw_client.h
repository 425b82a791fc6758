#pragma once

// A master that says exactly what a test wants, bytes and all, and ggml graphs as they are on the wire.

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <string>
#include <vector>

#include "blocking_socket.h"
#include "check.h"
#include "ggml.h"
#include "rpc/protocol.h"
#include "rpc/sha256.h"
#include "rpc/socket.h"

namespace droid::test {

using namespace droid::rpc;
using Bytes = std::vector<uint8_t>;

template <typename T>
void append(Bytes & bytes, const T & value) {
    const auto * p = reinterpret_cast<const uint8_t *>(&value);
    bytes.insert(bytes.end(), p, p + sizeof value);
}

template <typename T>
Bytes bytes_of(const T & value) {
    Bytes bytes;
    append(bytes, value);
    return bytes;
}

inline void append(Bytes & bytes, const void * data, size_t size) {
    const auto * p = static_cast<const uint8_t *>(data);
    bytes.insert(bytes.end(), p, p + size);
}

class RawClient {
  public:
    explicit RawClient(uint16_t port, const std::string & host = "127.0.0.1")
        : fd_(connect_tcp(host + ":" + std::to_string(port), host, port)) {
        set_receive_timeout(fd_, 20);
    }
    ~RawClient() { close_socket(fd_); }
    RawClient(const RawClient &) = delete;
    RawClient & operator=(const RawClient &) = delete;

    // Greets; false when the server hung up.
    bool hello(bool extended = true, uint8_t level = extension_level) {
        Capabilities capabilities = {};
        if (extended) {
            std::memcpy(capabilities.magic, extension_magic, sizeof extension_magic);
            capabilities.version = extension_version;
            capabilities.level = level;
        }
        send(Command::hello, bytes_of(capabilities));
        uint64_t size = 0;
        if (!recv_all(fd_, &size, sizeof size)) return false;
        CHECK_EQUAL(size, sizeof greeting);
        CHECK(recv_all(fd_, &greeting, sizeof greeting));
        return true;
    }

    void send(Command command, const Bytes & payload) { send(static_cast<uint8_t>(command), payload.size(), payload); }
    void send(uint8_t command, uint64_t size, const Bytes & payload) {
        Bytes message = {command};
        append(message, size);
        message.insert(message.end(), payload.begin(), payload.end());
        raw(message);
    }
    void raw(const Bytes & message) { send_all(fd_, message.data(), message.size()); }

    Bytes answer() {
        uint64_t size = 0;
        CHECK(recv_all(fd_, &size, sizeof size));
        if (size == notice_size) throw Failure("notice: " + notice_text());
        CHECK(size < 1ull << 30);
        Bytes bytes(size);
        CHECK(recv_all(fd_, bytes.data(), bytes.size()));
        return bytes;
    }
    template <typename Answer>
    Answer answer() {
        const Bytes bytes = answer();
        CHECK_EQUAL(bytes.size(), sizeof(Answer));
        Answer value;
        std::memcpy(&value, bytes.data(), sizeof value);
        return value;
    }
    template <typename Answer>
    Answer ask(Command command, const Bytes & payload) {
        send(command, payload);
        return answer<Answer>();
    }

    // What the notice says that must come next, before the server hangs up.
    std::string refusal() {
        uint64_t size = 0;
        if (!recv_all(fd_, &size, sizeof size)) throw Failure("no notice came");
        CHECK_EQUAL(size, notice_size);
        const std::string text = notice_text();
        CHECK(hung_up());
        return text;
    }
    bool hung_up() {
        char byte;
        return recv(fd_, &byte, 1, 0) <= 0;
    }

    struct Allocation {
        uint64_t buffer;
        uint64_t base;
        uint64_t size;
    };
    Allocation allocate(uint64_t size) {
        const auto made = ask<AllocBufferAnswer>(Command::alloc_buffer, bytes_of(AllocBufferRequest{0, size}));
        CHECK(made.buffer != 0);
        CHECK_EQUAL(made.size, size);
        return {made.buffer, ask<uint64_t>(Command::buffer_get_base, bytes_of(BufferRequest{made.buffer})), size};
    }
    void write(const Allocation & to, uint64_t offset, const void * data, size_t size) {
        Bytes payload = bytes_of(WriteRequest{to.buffer, offset, size});
        append(payload, data, size);
        send(Command::write, payload);
    }
    Bytes read(const Allocation & from, uint64_t offset, uint64_t size) {
        send(Command::read, bytes_of(ReadRequest{from.buffer, offset, size}));
        Bytes bytes = answer();
        CHECK_EQUAL(bytes.size(), size + sizeof compute_us);
        std::memcpy(&compute_us, bytes.data(), sizeof compute_us);
        bytes.erase(bytes.begin(), bytes.begin() + sizeof compute_us);
        return bytes;
    }

    HelloAnswer greeting = {};
    uint64_t compute_us = 0;
    NoticeReason reason = {};

  private:
    std::string notice_text() {
        Notice notice = {};
        CHECK(recv_all(fd_, &notice, sizeof notice));
        CHECK(notice.text_size <= notice_text_limit);
        reason = static_cast<NoticeReason>(notice.reason);
        std::string text(notice.text_size, ' ');
        CHECK(recv_all(fd_, text.data(), text.size()));
        return text;
    }

    int fd_;
};

// ggml's tensors with the addresses of a remote buffer in place of data. Nothing is computed here.
class RemoteGraph {
  public:
    explicit RemoteGraph(const RawClient::Allocation & buffer) : buffer_(buffer) {
        context = ggml_init({ggml_tensor_overhead() * 256 + ggml_graph_overhead(), nullptr, true});
        graph = ggml_new_graph(context);
    }
    ~RemoteGraph() { ggml_free(context); }
    RemoteGraph(const RemoteGraph &) = delete;
    RemoteGraph & operator=(const RemoteGraph &) = delete;

    ggml_tensor * place(ggml_tensor * tensor) {
        if (tensor->view_src) {
            tensor->data = static_cast<char *>(tensor->view_src->data) + tensor->view_offs;
            return tensor;
        }
        next_ = (next_ + 63) / 64 * 64;
        tensor->data = reinterpret_cast<void *>(static_cast<uintptr_t>(buffer_.base + next_));
        next_ += ggml_nbytes(tensor);
        CHECK(next_ <= buffer_.size);
        return tensor;
    }
    uint64_t offset_of(const ggml_tensor * tensor) const {
        return reinterpret_cast<uintptr_t>(tensor->data) - buffer_.base;
    }
    void expand(ggml_tensor * output) { ggml_build_forward_expand(graph, output); }

    Tensor wire(const ggml_tensor * tensor) const {
        Tensor wire = {};
        wire.id = reinterpret_cast<uintptr_t>(tensor);
        wire.type = tensor->type;
        wire.buffer = buffer_.buffer;
        for (int i = 0; i < GGML_MAX_DIMS; i++) {
            wire.ne[i] = static_cast<uint32_t>(tensor->ne[i]);
            wire.nb[i] = static_cast<uint32_t>(tensor->nb[i]);
        }
        wire.op = tensor->op;
        std::memcpy(wire.op_params, tensor->op_params, sizeof wire.op_params);
        wire.flags = tensor->flags;
        for (int i = 0; i < GGML_MAX_SRC; i++) wire.src[i] = reinterpret_cast<uintptr_t>(tensor->src[i]);
        wire.view_src = reinterpret_cast<uintptr_t>(tensor->view_src);
        wire.view_offs = tensor->view_offs;
        wire.data = reinterpret_cast<uintptr_t>(tensor->data);
        std::memcpy(wire.name, tensor->name, sizeof wire.name);
        wire.use_count = 1;
        return wire;
    }

    std::vector<uint64_t> ids() const {
        std::vector<uint64_t> ids;
        for (int i = 0; i < ggml_graph_n_nodes(graph); i++) {
            ids.push_back(reinterpret_cast<uintptr_t>(ggml_graph_node(graph, i)));
        }
        return ids;
    }
    std::vector<Tensor> tensors() const {
        std::vector<Tensor> list;
        for (ggml_tensor * t = ggml_get_first_tensor(context); t; t = ggml_get_next_tensor(context, t)) {
            list.push_back(wire(t));
        }
        return list;
    }
    static Bytes message(const std::vector<uint64_t> & ids, const std::vector<Tensor> & tensors) {
        Bytes bytes = bytes_of(uint32_t{0});
        append(bytes, static_cast<uint32_t>(ids.size()));
        append(bytes, ids.data(), ids.size() * sizeof(uint64_t));
        append(bytes, static_cast<uint32_t>(tensors.size()));
        append(bytes, tensors.data(), tensors.size() * sizeof(Tensor));
        return bytes;
    }
    Bytes message() const { return message(ids(), tensors()); }

    ggml_context * context;
    ggml_cgraph * graph;

  private:
    RawClient::Allocation buffer_;
    uint64_t next_ = 0;
};

}  // namespace droid::test
