#include "pipe_worker.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <utility>

using namespace droid::rpc;

namespace droid::fuzz {

namespace {

constexpr uint64_t memory_limit = 8 << 20;

class SocketPipe : public Stream {
  public:
    SocketPipe(int fd, const PipeWorker::AnswerFn & on_answer, const PipeWorker::RequestFn & on_request)
        : fd_(fd), on_answer_(on_answer), on_request_(on_request) {}

    bool read(void * data, size_t size) override {
        for (size_t done = 0; done < size;) {
            const ssize_t n = recv(fd_, static_cast<char *>(data) + done, size - done, 0);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return false;
            done += size_t(n);
        }
        if (on_request_) on_request_(data, size);
        return true;
    }

    bool write(const iovec * pieces, int count) override { return on_answer_(fd_, pieces, count); }

  private:
    const int fd_;
    const PipeWorker::AnswerFn & on_answer_;
    const PipeWorker::RequestFn & on_request_;
};

[[noreturn]] void die(const char * what) {
    std::perror(what);
    std::_Exit(2);
}

}  // namespace

bool send_pieces(int fd, const iovec * pieces, int count) {
    for (int i = 0; i < count; i++) {
        for (size_t done = 0; done < pieces[i].iov_len;) {
            const char * from = static_cast<const char *>(pieces[i].iov_base) + done;
            const ssize_t n = send(fd, from, pieces[i].iov_len - done, MSG_NOSIGNAL);
            if (n < 0 && errno == EINTR) continue;
            if (n <= 0) return false;
            done += size_t(n);
        }
    }
    return true;
}

PipeWorker::PipeWorker() {
    listener_ = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    auto * generic = reinterpret_cast<sockaddr *>(&address);
    if (listener_ < 0 || bind(listener_, generic, size) != 0 || listen(listener_, 4) != 0) die("listen");
    if (getsockname(listener_, generic, &size) != 0) die("getsockname");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { run(); });
}

PipeWorker::~PipeWorker() {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        stopping_ = true;
    }
    changed_.notify_all();
    thread_.join();
    close(listener_);
}

void PipeWorker::expect(AnswerFn on_answer, RequestFn on_request) {
    {
        const std::lock_guard<std::mutex> lock(mutex_);
        on_answer_ = std::move(on_answer);
        on_request_ = std::move(on_request);
        busy_ = true;
    }
    changed_.notify_all();
}

void PipeWorker::wait() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return !busy_; });
}

void PipeWorker::run() {
    for (;;) {
        {
            std::unique_lock<std::mutex> lock(mutex_);
            changed_.wait(lock, [this] { return busy_ || stopping_; });
            if (stopping_) return;
        }
        const int fd = accept(listener_, nullptr, nullptr);
        if (fd < 0) die("accept");
        serve(fd);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            busy_ = false;
        }
        changed_.notify_all();
    }
}

void PipeWorker::serve(int fd) {
    const int one = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    {
        ServerCounters counters;
        Budget budget(memory_limit);
        Compute compute(1, budget);
        WeightStore weights(budget, nullptr, counters);
        SocketPipe stream(fd, on_answer_, on_request_);
        Session session(stream, {compute, weights, budget, memory_limit, counters}, {});
        if (session.greet() && session.welcome(HelloStatus::ok)) session.serve();
    }
    // Nothing more comes; what the client still sends is read, so that it sees an end and no reset.
    shutdown(fd, SHUT_WR);
    char rest[4096];
    while (recv(fd, rest, sizeof rest, 0) > 0) continue;
    // Without a TIME_WAIT: thousands of these a minute would use up the ports.
    const linger at_once = {1, 0};
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &at_once, sizeof at_once);
    close(fd);
}

}  // namespace droid::fuzz
