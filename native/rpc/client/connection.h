#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "errors.h"
#include "rpc/client/hangup_watcher.h"
#include "rpc/client/interrupt.h"
#include "rpc/client/patience.h"
#include "rpc/client/worker.h"
#include "rpc/protocol.h"

namespace droid::rpc {

// What the worker was asked, for messages and for the size of its answer.
struct Asked {
    Command command;
    uint64_t amount = 0;  // nodes of a graph, bytes of anything else; 0: not worth saying
};

// "1.5 s", for messages.
std::string seconds(std::chrono::milliseconds time);

// Where an answer goes.
struct Answer {
    void * destination;            // valid until the answer is there, or forgotten
    uint64_t size;                 // exactly
    bool timed = false;            // the extension's read: eight bytes about computing time come first
    const void * owner = nullptr;  // for forget()
};

// One connection to a worker, with requests in order and answers in the same order.
//
// Requests collect in a buffer and leave together: with flush(), before a wait, or when there are many. While sending
// waits for a busy worker, the answers that come meanwhile are taken, so that the two ends never wait for each other.
//
// The first failure is final; see Worker for its codes. The socket is shut down at once; its number is given back by
// the destructor only, so that no other thread meets a stranger under it.
class Connection {
  public:
    using Clock = std::chrono::steady_clock;
    using Ticket = uint64_t;  // of an answer; counts from 1

    // Throws what connect_tcp() throws.
    Connection(std::string endpoint, WorkerAddress address, const WorkerTimeouts & timeouts,
               std::shared_ptr<Interrupt> interrupt, WorkerCounters & counters);
    ~Connection();
    Connection(const Connection &) = delete;
    Connection & operator=(const Connection &) = delete;

    const std::string & endpoint() const { return endpoint_; }
    std::optional<CodedError> failure() const;  // from any thread

    // Whoever calls what is below holds this.
    std::mutex & mutex() { return mutex_; }

    // All waits until end_handshake() together take at most handshake_ms.
    void begin_handshake();
    // From now on failures are told to on_lost, and a worker that hangs up is noticed while nobody talks to it.
    void end_handshake(std::function<void(const CodedError &)> on_lost);

    // Throws the failure that was.
    void check() const;

    // Adds a request whose payload is head and body. A large body is sent at once, from where it is.
    void send(const Asked & asked, const void * head, size_t head_size, const void * body = nullptr,
              size_t body_size = 0);
    // Part of the payload of the last request, if that was the same command and has not left yet; else a request.
    void send_joined(const Asked & asked, const void * head, size_t head_size, const void * body, size_t body_size);
    Ticket ask(const Asked & asked, const void * head, size_t head_size, const Answer & answer,
               const void * body = nullptr, size_t body_size = 0);

    // Adds a small request without sending anything; never waits.
    void add(const Asked & asked, const void * head, size_t head_size);

    // Returns when the answer is there in full. extra: on top of the usual time.
    void wait(Ticket ticket, std::chrono::milliseconds extra = {});
    // The answer of ask() where no more than that is wanted.
    void request(const Asked & asked, const void * head, size_t head_size, void * answer, size_t answer_size);

    // Another destination for the size bytes of an answer, which may be at the old one already.
    void redirect(Ticket ticket, const void * from, void * destination, size_t size, const void * owner);
    // Lets an answer go nowhere; or all of an owner.
    void forget(Ticket ticket) noexcept;
    void forget_owner(const void * owner) noexcept;

    void flush();
    // What can leave without waiting.
    void flush_some() noexcept;

    Patience & patience() { return patience_; }
    // To be called after a graph was sent: a worker that computes does not read.
    void adapt_user_timeout();

    [[noreturn]] void fail(const std::string & code, const std::string & message);
    // An answer that no worker would give.
    [[noreturn]] void fail_protocol(const Asked & asked, const std::string & problem);
    // "graph_compute of 432 nodes, then read of 3584 bytes"
    std::string last_asked() const;

  private:
    struct Pending {
        Asked asked;
        Answer answer;
        double work;  // Patience::sent() when it was asked
    };
    enum class Reading { header, time, data, notice, notice_text };

    void reserve(size_t head_size, size_t body_size);
    void append(const void * data, size_t size);
    void begin(const Asked & asked, const void * head, size_t head_size, size_t body_size);
    void send_all(const void * body, size_t body_size);
    bool send_once(const void * body, size_t body_size, size_t & sent);
    bool receive();
    void parse();
    bool take(void * destination, size_t size);
    void answered();
    [[noreturn]] void hung_up(const std::string & how);
    [[noreturn]] void fail_notice();
    [[noreturn]] void fail_silent(std::chrono::milliseconds waited);
    [[noreturn]] void fail_lost(const std::string & why);
    void check_interrupt();
    void poll_socket(short events, Clock::time_point deadline);
    std::chrono::milliseconds answer_time() const;
    void on_idle_hangup() noexcept;

    const std::string endpoint_;
    const WorkerTimeouts timeouts_;
    const std::shared_ptr<Interrupt> interrupt_;
    WorkerCounters & counters_;
    OwnedSocket socket_;
    const int fd_;  // of socket_

    std::mutex mutex_;
    mutable std::mutex failure_mutex_;
    std::optional<CodedError> failure_;
    std::atomic<bool> failed_{false};
    std::function<void(const CodedError &)> on_lost_;
    std::optional<Clock::time_point> handshake_end_;
    bool idle_ = false;

    std::vector<uint8_t> outgoing_;
    std::optional<size_t> joinable_;  // where in it the request begins that send_joined() may add to
    std::deque<Pending> pending_;
    Ticket asked_ = 0;
    Ticket answered_ = 0;
    std::optional<Asked> last_graph_;
    std::optional<Asked> last_;
    Patience patience_;
    bool watching_ = false;  // whether somebody waits, so that an answer's arrival is seen when it happens
    std::chrono::milliseconds user_timeout_{0};

    std::vector<uint8_t> incoming_;
    size_t begin_ = 0;
    size_t end_ = 0;
    Reading reading_ = Reading::header;
    uint64_t received_ = 0;  // of the answer that is being read
    uint64_t compute_us_ = 0;
    uint64_t compute_us_before_ = 0;
    uint64_t header_ = 0;
    Notice notice_ = {};
    std::string notice_text_;

    std::unique_ptr<HangupWatcher> watcher_;
};

}  // namespace droid::rpc
