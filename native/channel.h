#pragma once

#include <napi.h>

#include <functional>
#include <memory>
#include <mutex>

namespace droid {

// The way from any thread back to one environment's JS thread. An environment has one, made when the addon loads.
//
// It does not keep the event loop alive by itself: whoever waits for something takes a Channel::Ref for as long.
class Channel {
  public:
    using Task = std::function<void(Napi::Env)>;

    explicit Channel(Napi::Env env);

    // From any thread; runs task on the JS thread in the order of the calls. After close() the task is dropped.
    void post(Task task);

    // JS thread only: nothing runs any more. Idempotent.
    void close();

    bool closed() const { return closed_; }

    // Keeps the event loop alive while it exists. Made and destroyed on the JS thread.
    class Ref {
      public:
        explicit Ref(std::shared_ptr<Channel> channel, Napi::Env env);
        ~Ref();
        Ref(const Ref &) = delete;
        Ref & operator=(const Ref &) = delete;

      private:
        std::shared_ptr<Channel> channel_;
        napi_env env_;
    };

  private:
    std::mutex mutex_;
    bool closed_ = false;
    int refs_ = 0;
    Napi::ThreadSafeFunction function_;
};

}  // namespace droid
