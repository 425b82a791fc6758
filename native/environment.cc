#include "environment.h"

namespace droid {

Environment::Environment(Napi::Env env) : channel_(std::make_shared<Channel>(env)) {
    // After the channel was made, because hooks run in reverse order and the channel must still stand then.
    env.AddCleanupHook([this] { shutdown(); });
}

void Environment::shutdown() {
    if (down_) return;
    down_ = true;
    channel_->close();
    for (auto open = open_.rbegin(); open != open_.rend(); ++open) (*open)->stop();
    open_.clear();
    for (auto & job : jobs_) {
        if (job.joinable()) job.join();
    }
    jobs_.clear();
}

Napi::Error to_js_error(Napi::Env env, const CodedError & error) {
    Napi::Error js = Napi::Error::New(env, error.what());
    js.Set("code", Napi::String::New(env, error.code()));
    return js;
}

}  // namespace droid
