#pragma once

#include <condition_variable>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

namespace droid {

// Threads for jobs that block: grows to a limit while all are busy, further jobs wait their turn.
class ThreadPool {
  public:
    explicit ThreadPool(size_t limit) : limit_(limit) {}
    ~ThreadPool() { stop(); }

    void submit(std::function<void()> job) {
        std::lock_guard<std::mutex> lock(mutex_);
        if (stopping_) return;
        jobs_.push_back(std::move(job));
        if (jobs_.size() > idle_ && threads_.size() < limit_) {
            threads_.emplace_back([this] { work(); });
        }
        wake_.notify_one();
    }

    // Runs what was submitted, then ends the threads. Idempotent; not from a job.
    void stop() {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            stopping_ = true;
            wake_.notify_all();
        }
        for (auto & thread : threads_) {
            if (thread.joinable()) thread.join();
        }
    }

  private:
    void work() {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            idle_++;
            wake_.wait(lock, [this] { return stopping_ || !jobs_.empty(); });
            idle_--;
            if (jobs_.empty()) return;
            auto job = std::move(jobs_.front());
            jobs_.pop_front();
            lock.unlock();
            job();
            job = nullptr;
            lock.lock();
        }
    }

    const size_t limit_;
    std::mutex mutex_;
    std::condition_variable wake_;
    std::deque<std::function<void()>> jobs_;
    std::vector<std::thread> threads_;
    size_t idle_ = 0;
    bool stopping_ = false;
};

}  // namespace droid
