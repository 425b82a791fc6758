#include "request.h"

namespace droid {

void Request::next(ChunkFn on_chunk) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!finished_ && !*cancelled_) {
            pending_ = std::move(on_chunk);
            reader_.notify_all();
            return;
        }
    }
    on_chunk({*cancelled_ ? Chunk::cancelled : Chunk::end, ""});
}

void Request::cancel() {
    ChunkFn pending;
    std::function<void()> wake;
    bool no_head;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (cancelled_->exchange(true)) return;
        no_head = !head_sent_;
        head_sent_ = true;
        pending.swap(pending_);
        wake.swap(wake_);
        reader_.notify_all();
    }
    if (wake) wake();
    if (no_head) on_head_(nullptr);
    if (pending) pending({Chunk::cancelled, ""});
}

void Request::set_wake(std::function<void()> wake) {
    std::lock_guard<std::mutex> lock(mutex_);
    wake_ = std::move(wake);
}

void Request::head(const ResponseHead & head) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        if (head_sent_) return;
        head_sent_ = true;
    }
    on_head_(&head);
}

bool Request::wait_for_reader() {
    std::unique_lock<std::mutex> lock(mutex_);
    reader_.wait(lock, [this] { return *cancelled_ || pending_; });
    return !*cancelled_;
}

void Request::deliver(std::string chunk) {
    ChunkFn pending;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        pending.swap(pending_);
    }
    if (pending) pending({Chunk::data_chunk, std::move(chunk)});
}

void Request::finish() {
    ChunkFn pending;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        finished_ = true;
        wake_ = nullptr;
        pending.swap(pending_);
    }
    if (pending) pending({Chunk::end, ""});
}

}  // namespace droid
