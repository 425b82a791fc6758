#include "rpc/client/connection.h"

#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

#include "rpc/socket.h"

namespace droid::rpc {

namespace {

#ifdef MSG_NOSIGNAL
constexpr int send_flags = MSG_NOSIGNAL;
#else
constexpr int send_flags = 0;  // macOS: SO_NOSIGPIPE, set in tune_socket
#endif

constexpr size_t outgoing_limit = 64 * 1024;
constexpr size_t direct_body = 32 * 1024;  // from here on copying costs more than another piece
constexpr size_t incoming_size = 64 * 1024;
constexpr size_t direct_read = 4096;
constexpr uint64_t slowest_answer = 64;  // bytes/ms, once it has begun

int seconds_up(int ms) {
    return std::max(1, (ms + 999) / 1000);
}

OwnedSocket open(WorkerAddress & address, const std::string & endpoint, int timeout_ms, int interrupt_fd) {
    if (address.socket) return std::move(address.socket);
    return OwnedSocket(connect_tcp(endpoint, address.host, address.port, timeout_ms, interrupt_fd));
}

}  // namespace

Connection::Connection(std::string endpoint, WorkerAddress address, const WorkerTimeouts & timeouts,
                       std::shared_ptr<Interrupt> interrupt, WorkerCounters & counters)
    : endpoint_(std::move(endpoint)),
      timeouts_(timeouts),
      interrupt_(std::move(interrupt)),
      counters_(counters),
      socket_(open(address, endpoint_, timeouts.connect_ms, interrupt_->fd())),
      fd_(socket_.get()) {
    outgoing_.reserve(2 * outgoing_limit);
    incoming_.resize(incoming_size);
    set_nonblocking(fd_);
    const int interval = seconds_up(timeouts_.keepalive_interval_ms);
    tune_socket(fd_, {seconds_up(timeouts_.keepalive_idle_ms), interval,
                      std::max(1, (seconds_up(timeouts_.user_timeout_ms) + interval - 1) / interval)});
    adapt_user_timeout();
}

Connection::~Connection() {
    watcher_.reset();
    if (failed_) {
        abort_socket(socket_.release());
    } else {
        flush_some();
    }
}

void Connection::begin_handshake() {
    handshake_end_ = Clock::now() + std::chrono::milliseconds(timeouts_.handshake_ms);
}

void Connection::end_handshake(std::function<void(const CodedError &)> on_lost) {
    handshake_end_.reset();
    on_lost_ = std::move(on_lost);
    watcher_ = std::make_unique<HangupWatcher>(fd_, [this] { on_idle_hangup(); });
}

void Connection::adapt_user_timeout() {
    // The kernel counts the time a peer does not read, too; it must not be less patient than we are.
    const auto base = std::chrono::milliseconds(std::max(1, timeouts_.user_timeout_ms));
    const auto allowance = patience_.allowance();
    const auto wanted = allowance > base ? base + allowance : base;
    const bool near_enough = wanted > base && wanted <= user_timeout_ && user_timeout_ <= 4 * wanted;
    if (wanted == user_timeout_ || near_enough) return;
    user_timeout_ = wanted;
    set_user_timeout(fd_, static_cast<int>(wanted.count()));
}

// Sending

// Half a request must not stay behind when memory runs out.
void Connection::reserve(size_t head_size, size_t body_size) {
    const size_t more = 16 + head_size + (body_size < direct_body ? body_size : 0);
    if (outgoing_.capacity() < outgoing_.size() + more) outgoing_.reserve(2 * (outgoing_.size() + more));
}

void Connection::append(const void * data, size_t size) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    outgoing_.insert(outgoing_.end(), bytes, bytes + size);
}

void Connection::begin(const Asked & asked, const void * head, size_t head_size, size_t body_size) {
    joinable_.reset();
    const uint64_t size = head_size + body_size;
    append(&asked.command, sizeof asked.command);
    append(&size, sizeof size);
    append(head, head_size);
    counters_.messages_sent++;
    const bool graph = computes(asked.command);
    (graph ? last_graph_ : last_) = asked;
    if (graph) last_.reset();
}

void Connection::add(const Asked & asked, const void * head, size_t head_size) {
    reserve(head_size, 0);
    begin(asked, head, head_size, 0);
}

void Connection::send(const Asked & asked, const void * head, size_t head_size, const void * body, size_t body_size) {
    check();
    reserve(head_size, body_size);
    begin(asked, head, head_size, body_size);
    if (body_size >= direct_body) {
        send_all(body, body_size);
        return;
    }
    append(body, body_size);
    if (outgoing_.size() > outgoing_limit) flush();
}

void Connection::send_joined(const Asked & asked, const void * head, size_t head_size, const void * body,
                             size_t body_size) {
    check();
    const bool same = joinable_ && outgoing_[*joinable_] == static_cast<uint8_t>(asked.command);
    if (!same || body_size >= direct_body || outgoing_.size() + head_size + body_size > outgoing_limit) {
        const size_t start = outgoing_.size();
        send(asked, head, head_size, body, body_size);
        if (outgoing_.size() > start) joinable_ = start;
        return;
    }
    reserve(head_size, body_size);
    append(head, head_size);
    append(body, body_size);
    uint8_t * field = outgoing_.data() + *joinable_ + sizeof asked.command;
    uint64_t size;
    std::memcpy(&size, field, sizeof size);
    size += head_size + body_size;
    std::memcpy(field, &size, sizeof size);
    if (last_) last_->amount += asked.amount;
}

Connection::Ticket Connection::ask(const Asked & asked, const void * head, size_t head_size, const Answer & answer,
                                   const void * body, size_t body_size) {
    check();
    reserve(head_size, body_size);
    pending_.push_back({asked, answer, patience_.sent()});
    asked_++;
    send(asked, head, head_size, body, body_size);
    return asked_;
}

void Connection::request(const Asked & asked, const void * head, size_t head_size, void * answer, size_t answer_size) {
    wait(ask(asked, head, head_size, {answer, answer_size}));
}

void Connection::flush() {
    check();
    if (!outgoing_.empty()) send_all(nullptr, 0);
}

void Connection::flush_some() noexcept {
    if (failed_ || interrupt_->tripped() || outgoing_.empty()) return;
    try {
        size_t sent = 0;
        send_once(nullptr, 0, sent);
        joinable_.reset();
        outgoing_.erase(outgoing_.begin(), outgoing_.begin() + static_cast<ptrdiff_t>(sent));
    } catch (...) {
        // It was recorded; the next call that may throw says so.
    }
}

// One system call for what is left of outgoing_ and body; false when the kernel takes nothing at the moment.
bool Connection::send_once(const void * body, size_t body_size, size_t & sent) {
    iovec pieces[2];
    int count = 0;
    const size_t head_sent = std::min(sent, outgoing_.size());
    if (head_sent < outgoing_.size()) {
        pieces[count++] = {outgoing_.data() + head_sent, outgoing_.size() - head_sent};
    }
    const size_t body_sent = sent - head_sent;
    if (body_sent < body_size) {
        auto * rest = const_cast<char *>(static_cast<const char *>(body)) + body_sent;
        pieces[count++] = {rest, body_size - body_sent};
    }
    msghdr message = {};
    message.msg_iov = pieces;
    message.msg_iovlen = static_cast<decltype(message.msg_iovlen)>(count);
    ssize_t n;
    do {
        n = sendmsg(fd_, &message, send_flags);
    } while (n < 0 && errno == EINTR);
    if (n >= 0) {
        counters_.writes++;
        counters_.bytes_sent += static_cast<uint64_t>(n);
        sent += static_cast<size_t>(n);
        return true;
    }
    if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
    hung_up(std::strerror(errno));
    return false;
}

void Connection::send_all(const void * body, size_t body_size) {
    check_interrupt();
    const size_t total = outgoing_.size() + body_size;
    size_t sent = 0;
    auto progress = Clock::now();
    while (sent < total) {
        if (send_once(body, body_size, sent)) {
            progress = Clock::now();
            continue;
        }
        // Its answers may be what the worker cannot get rid of.
        bool received = false;
        while (receive()) received = true;
        const auto now = Clock::now();
        if (received) progress = now;
        if (now >= progress + answer_time()) {
            fail_silent(std::chrono::duration_cast<std::chrono::milliseconds>(now - progress));
        }
        poll_socket(POLLIN | POLLOUT, progress + answer_time());
    }
    outgoing_.clear();
    joinable_.reset();
}

// Waiting

std::chrono::milliseconds Connection::answer_time() const {
    return std::chrono::milliseconds(timeouts_.answer_ms) + patience_.allowance();
}

void Connection::check_interrupt() {
    if (!interrupt_->tripped()) return;
    fail("DROID_CLOSED", "Waiting for the worker " + endpoint_ + " in " + last_asked() + " was interrupted");
}

void Connection::poll_socket(short events, Clock::time_point deadline) {
    if (handshake_end_) deadline = std::min(deadline, *handshake_end_);
    const auto started = Clock::now();
    const auto user_timeout = std::chrono::milliseconds(timeouts_.user_timeout_ms);
    const auto look = std::clamp(user_timeout / 4, std::chrono::milliseconds(50), std::chrono::milliseconds(1000));
    for (;;) {
        const auto until = std::min(deadline, Clock::now() + look);
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now()).count();
        pollfd waiting[2] = {{fd_, events, 0}, {interrupt_->fd(), POLLIN, 0}};
        const int ready = poll(waiting, 2, static_cast<int>(std::max<int64_t>(left + 1, 0)));
        if (ready < 0 && errno != EINTR) fail_lost(std::strerror(errno));
        check_interrupt();
        const auto now = Clock::now();
        if (handshake_end_ && now >= *handshake_end_) fail_silent(std::chrono::milliseconds(timeouts_.handshake_ms));
        if (ready > 0 || now >= deadline) return;
        // While a long graph runs, TCP's own timeout is as patient as we are (see adapt_user_timeout), but a worker
        // that is out of reach is told from one that computes: its kernel does not answer either.
        if (now - started >= user_timeout && unanswered_for(fd_) >= user_timeout) {
            fail_lost("the network has not reached it for " + seconds(user_timeout));
        }
    }
}

void Connection::wait(Ticket ticket, std::chrono::milliseconds extra) {
    check();
    if (answered_ >= ticket) return;
    flush();
    auto progress = Clock::now();
    auto started = progress;
    bool counted = false;
    size_t unacknowledged = SIZE_MAX;
    for (;;) {
        const Ticket before = answered_;
        bool received = false;
        while (answered_ < ticket && receive()) received = true;
        if (answered_ >= ticket) break;
        const auto now = Clock::now();
        if (received) progress = now;
        if (answered_ != before) started = now;

        const bool begun = reading_ != Reading::header;
        auto deadline = started + answer_time() + extra;
        if (begun) {
            const auto transfer = std::chrono::milliseconds(pending_.front().answer.size / slowest_answer);
            deadline = std::min(deadline + transfer, progress + std::chrono::milliseconds(timeouts_.answer_ms));
        }
        if (handshake_end_) deadline = *handshake_end_;
        if (now >= deadline) {
            // What it has not got yet it cannot answer; a slow link is not a silent worker.
            const size_t left = begun ? 0 : unacknowledged_bytes(fd_);
            if (left == 0 || left >= unacknowledged) {
                fail_silent(std::chrono::duration_cast<std::chrono::milliseconds>(now - started));
            }
            unacknowledged = left;
            started = now;
            continue;
        }
        if (!counted) counters_.waits++;
        counted = true;
        watching_ = true;
        if (unacknowledged == SIZE_MAX) unacknowledged = unacknowledged_bytes(fd_);
        try {
            poll_socket(POLLIN, deadline);
        } catch (...) {
            watching_ = false;
            throw;
        }
        counters_.wait_us +=
            static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(Clock::now() - now).count());
    }
    watching_ = false;
}

// Receiving

// One system call; false when there is nothing at the moment.
bool Connection::receive() {
    void * target = incoming_.data();
    size_t room = incoming_.size();
    bool direct = false;
    if (reading_ == Reading::data) {
        const Answer & answer = pending_.front().answer;
        const uint64_t left = answer.size - received_;
        if (answer.destination && left >= direct_read) {
            target = static_cast<char *>(answer.destination) + received_;
            room = static_cast<size_t>(left);
            direct = true;
        }
    }
    ssize_t n;
    do {
        n = recv(fd_, target, room, 0);
    } while (n < 0 && errno == EINTR);
    if (n < 0) {
        if (errno == EAGAIN || errno == EWOULDBLOCK) return false;
        fail_lost(std::strerror(errno));
    }
    if (n == 0) fail_lost("it closed the connection");
    counters_.bytes_received += static_cast<uint64_t>(n);
    if (direct) {
        received_ += static_cast<uint64_t>(n);
    } else {
        begin_ = 0;
        end_ = static_cast<size_t>(n);
    }
    parse();
    return true;
}

// Moves bytes of incoming_ to destination, which has received_ of size so far; true when it is full.
bool Connection::take(void * destination, size_t size) {
    const size_t n = std::min<size_t>(size - static_cast<size_t>(received_), end_ - begin_);
    if (destination && n > 0) std::memcpy(static_cast<char *>(destination) + received_, incoming_.data() + begin_, n);
    begin_ += n;
    received_ += n;
    if (received_ < size) return false;
    received_ = 0;
    return true;
}

void Connection::parse() {
    for (;;) {
        switch (reading_) {
            case Reading::header: {
                if (!take(&header_, sizeof header_)) return;
                if (header_ == notice_size) {
                    reading_ = Reading::notice;
                    break;
                }
                if (pending_.empty()) {
                    fail_protocol(last_.value_or(Asked{Command::hello}), "it answered what it was not asked");
                }
                const Pending & next = pending_.front();
                const uint64_t prefix = next.answer.timed ? sizeof compute_us_ : 0;
                if (header_ != next.answer.size + prefix) {
                    fail_protocol(next.asked, "its answer has " + std::to_string(header_) + " bytes instead of " +
                                                  std::to_string(next.answer.size + prefix));
                }
                reading_ = next.answer.timed ? Reading::time : Reading::data;
                break;
            }
            case Reading::time:
                if (!take(&compute_us_, sizeof compute_us_)) return;
                reading_ = Reading::data;
                break;
            case Reading::data:
                if (!take(pending_.front().answer.destination, static_cast<size_t>(pending_.front().answer.size))) {
                    return;
                }
                answered();
                break;
            case Reading::notice:
                if (!take(&notice_, sizeof notice_)) return;
                if (notice_.text_size > notice_text_limit) {
                    fail_protocol(last_.value_or(Asked{Command::hello}), "its notice is too long");
                }
                notice_text_.assign(notice_.text_size, ' ');
                reading_ = Reading::notice_text;
                break;
            case Reading::notice_text:
                if (!take(notice_text_.data(), notice_text_.size())) return;
                fail_notice();
        }
    }
}

void Connection::answered() {
    const Pending & done = pending_.front();
    uint64_t computed = 0;
    if (done.answer.timed) {
        computed = compute_us_ > compute_us_before_ ? compute_us_ - compute_us_before_ : 0;
        compute_us_before_ = compute_us_;
        counters_.compute_us = compute_us_;
    }
    patience_.done(done.work, watching_, computed);
    pending_.pop_front();
    answered_++;
    counters_.messages_received++;
    reading_ = Reading::header;
    if (user_timeout_ > std::chrono::milliseconds(timeouts_.user_timeout_ms)) adapt_user_timeout();
}

void Connection::redirect(Ticket ticket, const void * from, void * destination, size_t size, const void * owner) {
    if (ticket <= answered_) {
        std::memcpy(destination, from, size);
        return;
    }
    Answer & answer = pending_[static_cast<size_t>(ticket - answered_ - 1)].answer;
    if (ticket == answered_ + 1 && reading_ == Reading::data) {
        std::memcpy(destination, from, static_cast<size_t>(received_));
    }
    answer.destination = destination;
    answer.owner = owner;
}

void Connection::forget(Ticket ticket) noexcept {
    if (ticket <= answered_ || failed_) return;
    pending_[static_cast<size_t>(ticket - answered_ - 1)].answer.destination = nullptr;
}

void Connection::forget_owner(const void * owner) noexcept {
    for (Pending & pending : pending_) {
        if (pending.answer.owner == owner) pending.answer.destination = nullptr;
    }
}

}  // namespace droid::rpc
