#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <thread>

#include "rpc/server/session.h"

namespace droid::fuzz {

// A worker on loopback that takes one connection after the other, each with a Session of its own. What the session
// answers passes through a function, which may write something else, or end the connection.
class PipeWorker {
  public:
    // Writes an answer to fd; false to hang up.
    using AnswerFn = std::function<bool(int fd, const iovec * pieces, int count)>;
    // Told each byte that came.
    using RequestFn = std::function<void(const void * data, size_t size)>;

    PipeWorker();
    ~PipeWorker();
    PipeWorker(const PipeWorker &) = delete;
    PipeWorker & operator=(const PipeWorker &) = delete;

    uint16_t port() const { return port_; }

    // For the next connection; both are called on the worker's thread.
    void expect(AnswerFn on_answer, RequestFn on_request = {});
    // Returns when that connection is over.
    void wait();

  private:
    void run();
    void serve(int fd);

    int listener_;
    uint16_t port_;
    std::mutex mutex_;
    std::condition_variable changed_;
    bool busy_ = false;
    bool stopping_ = false;
    AnswerFn on_answer_;
    RequestFn on_request_;
    std::thread thread_;
};

bool send_pieces(int fd, const iovec * pieces, int count);

}  // namespace droid::fuzz
