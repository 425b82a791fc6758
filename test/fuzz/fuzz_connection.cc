// The client's side of a connection, with a worker that lies. A real session answers; the input says what becomes of
// each of its answers, in order:
//
//   action u8 | size u16 | bytes
//
// When the input is at its end, all further answers are as they should be.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "drive.h"
#include "errors.h"
#include "pipe_worker.h"

using droid::CodedError;
using droid::fuzz::PipeWorker;
using namespace droid::rpc;

namespace {

enum class Action : uint8_t {
    honest,    // as it should be
    replace,   // the bytes instead
    flip,      // the bytes are xor'ed over it; the first two say where
    append,    // and the bytes, unasked
    refuse,    // a notice: the first byte is the reason, the others are its text
    truncate,  // as many bytes of it as the first two bytes say, and the end
    fill,      // the right size, and the bytes over and over as data
    hang_up,
    count,
};

class Liar {
  public:
    Liar(const uint8_t * data, size_t size) : data_(data), size_(size) {}

    bool answer(int fd, const iovec * pieces, int count) {
        std::vector<uint8_t> answer;
        for (int i = 0; i < count; i++) {
            const auto * bytes = static_cast<const uint8_t *>(pieces[i].iov_base);
            answer.insert(answer.end(), bytes, bytes + pieces[i].iov_len);
        }
        std::vector<uint8_t> bytes;
        switch (next(bytes)) {
            case Action::replace: return send(fd, bytes);
            case Action::flip: {
                const size_t at = take_offset(bytes);
                for (size_t i = 0; i < bytes.size() && at + i < answer.size(); i++) answer[at + i] ^= bytes[i];
                return send(fd, answer);
            }
            case Action::append: answer.insert(answer.end(), bytes.begin(), bytes.end()); return send(fd, answer);
            case Action::refuse: {
                const uint32_t reason = bytes.empty() ? 0 : bytes[0];
                const std::string text(bytes.begin() + (bytes.empty() ? 0 : 1), bytes.end());
                const std::string notice = make_notice(static_cast<NoticeReason>(reason), text);
                send(fd, {notice.begin(), notice.end()});
                return false;
            }
            case Action::truncate:
                answer.resize(std::min(answer.size(), take_offset(bytes)));
                send(fd, answer);
                return false;
            case Action::fill:
                for (size_t i = sizeof(uint64_t); i < answer.size() && !bytes.empty(); i++) {
                    answer[i] = bytes[i % bytes.size()];
                }
                return send(fd, answer);
            case Action::hang_up: return false;
            default: return send(fd, answer);
        }
    }

  private:
    static bool send(int fd, const std::vector<uint8_t> & bytes) {
        const iovec piece = {const_cast<uint8_t *>(bytes.data()), bytes.size()};
        return droid::fuzz::send_pieces(fd, &piece, 1);
    }

    static size_t take_offset(std::vector<uint8_t> & bytes) {
        bytes.resize(std::max<size_t>(bytes.size(), 2));
        const size_t offset = bytes[0] | size_t(bytes[1]) << 8;
        bytes.erase(bytes.begin(), bytes.begin() + 2);
        return offset;
    }

    Action next(std::vector<uint8_t> & bytes) {
        if (size_ < 3) return Action::honest;
        const auto action = static_cast<Action>(data_[0] % uint8_t(Action::count));
        const size_t wanted = data_[1] | size_t(data_[2]) << 8;
        const size_t size = std::min(wanted, size_ - 3);
        bytes.assign(data_ + 3, data_ + 3 + size);
        data_ += 3 + size;
        size_ -= 3 + size;
        return action;
    }

    const uint8_t * data_;
    size_t size_;
};

[[noreturn]] void found(const char * what) {
    std::fprintf(stderr, "ERROR: %s\n", what);
    std::abort();
}

WorkerTimeouts impatient() {
    WorkerTimeouts timeouts;
    timeouts.connect_ms = 1000;
    timeouts.handshake_ms = 100;
    timeouts.answer_ms = 100;
    return timeouts;
}

}  // namespace

extern "C" int LLVMFuzzerInitialize(int *, char ***) {
    ggml_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    return 0;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    static PipeWorker & worker = *new PipeWorker();
    Liar liar(data, size);
    worker.expect([&](int fd, const iovec * pieces, int count) { return liar.answer(fd, pieces, count); });
    const auto started = std::chrono::steady_clock::now();
    try {
        Worker client("fuzz", {"127.0.0.1", worker.port()}, impatient(), nullptr);
        droid::fuzz::drive(client);
    } catch (const CodedError & error) {
        if (error.code().compare(0, 6, "DROID_") != 0 || !*error.what()) found("an error without a code or a text");
    }
    const auto took = std::chrono::steady_clock::now() - started;
    worker.wait();
    // The deadlines are 100 ms; a graph's is longer, and so is the time on a busy machine.
    if (took > std::chrono::seconds(3)) found("the client hung");
    return 0;
}
