#include "channel.h"

namespace droid {

Channel::Channel(Napi::Env env) {
    // The queue needs no limit of its own: everything that is posted answers a promise or is one progress sample.
    function_ = Napi::ThreadSafeFunction::New(env, Napi::Function::New(env, [](const Napi::CallbackInfo &) {}),
                                              "droid-llama", 0, 1);
    function_.Unref(env);
}

void Channel::post(Task task) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) {
        return;
    }
    auto * heap = new Task(std::move(task));
    const napi_status status = function_.NonBlockingCall(heap, [](Napi::Env env, Napi::Function, Task * data) {
        std::unique_ptr<Task> owned(data);
        // env is null when the function is being torn down with calls still queued.
        if (!env) return;
        try {
            (*owned)(env);
        } catch (const Napi::Error & error) {
            // A user's callback threw, or the environment is terminating and runs no JS any more.
            error.ThrowAsJavaScriptException();
        }
    });
    if (status != napi_ok) {
        delete heap;
        // napi_closing also gave back this thread's reference; the function must not be touched again.
        closed_ = true;
    }
}

void Channel::close() {
    std::lock_guard<std::mutex> lock(mutex_);
    if (closed_) {
        return;
    }
    closed_ = true;
    function_.Abort();
}

Channel::Ref::Ref(std::shared_ptr<Channel> channel, Napi::Env env) : channel_(std::move(channel)), env_(env) {
    if (channel_->refs_++ == 0 && !channel_->closed_) {
        channel_->function_.Ref(env);
    }
}

Channel::Ref::~Ref() {
    if (--channel_->refs_ == 0 && !channel_->closed_) {
        channel_->function_.Unref(env_);
    }
}

}  // namespace droid
