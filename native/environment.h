#pragma once

#include <napi.h>

#include <atomic>
#include <functional>
#include <list>
#include <memory>
#include <thread>

#include "channel.h"
#include "errors.h"

namespace droid {

// Something with threads that must end before its environment does.
class Stoppable {
  public:
    virtual ~Stoppable() = default;
    // Blocks until its threads are gone. Idempotent, from any thread.
    virtual void stop() = 0;
};

// What one Node environment (the main thread or a worker_threads worker) owns: the channel to its JS thread and every
// engine and server that is not closed yet. It stops them all when the environment ends, so that no thread of ours
// outlives it; lib/addon.ts also calls shutdown() on 'exit', because process.exit() runs no environment hooks.
class Environment {
  public:
    explicit Environment(Napi::Env env);

    static Environment & of(Napi::Env env) { return *env.GetInstanceData<Environment>(); }

    const std::shared_ptr<Channel> & channel() const { return channel_; }

    void add(std::shared_ptr<Stoppable> open) { open_.push_back(std::move(open)); }
    void remove(const std::shared_ptr<Stoppable> & closed) { open_.remove(closed); }

    // Runs work on a thread of its own and settles the promise with what convert makes of it, or with the error.
    template <typename Result>
    Napi::Promise run(Napi::Env env, std::function<Result()> work,
                      std::function<Napi::Value(Napi::Env, Result &)> convert);

    // Whether it is being shut down: work that takes long asks this, from any thread, and ends early.
    bool ending() const { return down_; }

    // JS thread: stops everything, the newest first: an engine before the server whose memory it uses. Idempotent.
    void shutdown();

  private:
    std::shared_ptr<Channel> channel_;
    std::list<std::shared_ptr<Stoppable>> open_;
    std::list<std::thread> jobs_;
    std::atomic<bool> down_{false};
};

// A JS Error with the code.
Napi::Error to_js_error(Napi::Env env, const CodedError & error);

template <typename Result>
Napi::Promise Environment::run(Napi::Env env, std::function<Result()> work,
                               std::function<Napi::Value(Napi::Env, Result &)> convert) {
    auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
    auto ref = std::make_shared<std::unique_ptr<Channel::Ref>>(std::make_unique<Channel::Ref>(channel_, env));
    const Napi::Promise promise = deferred->Promise();
    auto job = jobs_.emplace(jobs_.end());
    *job = std::thread([this, job, deferred, ref, work = std::move(work), convert = std::move(convert)] {
        std::shared_ptr<Result> result;
        std::shared_ptr<CodedError> error;
        try {
            result = std::make_shared<Result>(work());
        } catch (const CodedError & e) {
            error = std::make_shared<CodedError>(e);
        } catch (const std::exception & e) {
            error = std::make_shared<CodedError>("DROID_LOAD_FAILED", e.what());
        }
        channel_->post([this, job, deferred, ref, result, error, convert](Napi::Env env) {
            job->join();
            jobs_.erase(job);
            ref->reset();
            if (error) {
                deferred->Reject(to_js_error(env, *error).Value());
            } else {
                deferred->Resolve(convert(env, *result));
            }
        });
    });
    return promise;
}

}  // namespace droid
