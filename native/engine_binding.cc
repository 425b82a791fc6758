#include "engine_binding.h"

#include <utility>

#include "convert.h"
#include "engine.h"
#include "environment.h"

namespace droid {

namespace {

class OpenEngine : public Stoppable {
  public:
    OpenEngine(EngineOptions options, Engine::Callbacks callbacks, Engine::OnWorkerLost on_worker_lost)
        : engine(std::move(options), std::move(callbacks), std::move(on_worker_lost)) {}
    void stop() override { engine.stop(); }

    Engine engine;
    std::shared_ptr<Napi::FunctionReference> on_worker_lost;  // JS thread only
};

EngineOptions read_options(const Napi::Object & from) {
    EngineOptions options;
    options.model = get_string(from, "model");
    const auto workers = from.Get("workers").As<Napi::Array>();
    for (uint32_t i = 0; i < workers.Length(); i++) {
        const auto worker = workers.Get(i).As<Napi::Object>();
        const int fd = worker.Get("fd").IsNumber() ? static_cast<int>(get_number(worker, "fd")) : -1;
        options.workers.push_back({get_string(worker, "endpoint"),
                                   fd >= 0 ? rpc::WorkerAddress(rpc::OwnedSocket(fd))
                                           : rpc::WorkerAddress(get_string(worker, "host"),
                                                                static_cast<uint16_t>(get_number(worker, "port"))),
                                   static_cast<uint32_t>(get_number(worker, "layers"))});
    }
    const auto timeouts = from.Get("timeouts").As<Napi::Object>();
    options.timeouts.connect_ms = static_cast<int>(get_number(timeouts, "connectMs"));
    options.timeouts.handshake_ms = static_cast<int>(get_number(timeouts, "handshakeMs"));
    options.timeouts.answer_ms = static_cast<int>(get_number(timeouts, "answerMs"));
    options.timeouts.keepalive_idle_ms = static_cast<int>(get_number(timeouts, "keepAliveIdleMs"));
    options.timeouts.keepalive_interval_ms = static_cast<int>(get_number(timeouts, "keepAliveIntervalMs"));
    options.timeouts.user_timeout_ms = static_cast<int>(get_number(timeouts, "userTimeoutMs"));
    options.head_on_worker = get_bool(from, "headOnWorker");
    options.half_activations = get_bool(from, "halfActivations");
    const auto tensors = from.Get("tensors").As<Napi::Array>();
    for (uint32_t i = 0; i < tensors.Length(); i++) {
        const auto tensor = tensors.Get(i).As<Napi::Object>();
        options.tensors.push_back(
            {{get_string(tensor, "name"), get_string(tensor, "path"),
              static_cast<uint64_t>(get_number(tensor, "offset")), static_cast<uint64_t>(get_number(tensor, "size"))},
             static_cast<int32_t>(get_number(tensor, "layer"))});
    }
    options.context_size = static_cast<uint32_t>(get_number(from, "contextSize"));
    options.batch_size = static_cast<uint32_t>(get_number(from, "batchSize"));
    options.ubatch_size = static_cast<uint32_t>(get_number(from, "ubatchSize"));
    options.parallel = static_cast<uint32_t>(get_number(from, "parallel"));
    options.threads = static_cast<uint32_t>(get_number(from, "threads"));
    options.mmap = get_bool(from, "mmap");
    options.embeddings = get_bool(from, "embeddings");
    options.reranking = get_bool(from, "reranking");
    options.pooling = get_string(from, "pooling");
    const auto loras = from.Get("loras").As<Napi::Array>();
    for (uint32_t i = 0; i < loras.Length(); i++) {
        const auto lora = loras.Get(i).As<Napi::Object>();
        options.loras.push_back({get_string(lora, "path"), static_cast<float>(get_number(lora, "scale"))});
    }
    options.draft = get_string(from, "draft");
    options.chat_template = get_string(from, "chatTemplate");
    options.llama_args = get_strings(from, "llamaArgs");
    options.llama_env = get_bool(from, "llamaEnv");
    return options;
}

HttpRequest read_request(const Napi::Object & from) {
    HttpRequest request;
    request.method = get_string(from, "method");
    request.route = get_string(from, "route");
    request.path = get_string(from, "path");
    request.query_string = get_string(from, "queryString");
    request.params = get_string_map(from, "params");
    request.headers = get_string_map(from, "headers");
    const auto body = from.Get("body").As<Napi::Uint8Array>();
    request.body.assign(reinterpret_cast<const char *>(body.Data()), body.ByteLength());
    const auto files = from.Get("files").As<Napi::Object>();
    for (const std::string & name : keys_of(files)) {
        const auto file = files.Get(name).As<Napi::Object>();
        const auto data = file.Get("data").As<Napi::Uint8Array>();
        request.files[name] = {{data.Data(), data.Data() + data.ByteLength()},
                               get_string(file, "filename"),
                               get_string(file, "contentType")};
    }
    return request;
}

Napi::Value head_to_js(Napi::Env env, const ResponseHead & head) {
    auto js = Napi::Object::New(env);
    js.Set("status", head.status);
    auto headers = Napi::Object::New(env);
    for (const auto & [name, value] : head.headers) headers.Set(name, value);
    js.Set("headers", headers);
    return js;
}

// The JS side of one request: head() and next() settle on engine threads, cancel() is a hint that returns at once.
class RequestHandle : public Napi::ObjectWrap<RequestHandle> {
  public:
    static Napi::Function define(Napi::Env env) {
        return DefineClass(env, "Request",
                           {InstanceMethod<&RequestHandle::head>("head"), InstanceMethod<&RequestHandle::next>("next"),
                            InstanceMethod<&RequestHandle::cancel>("cancel")});
    }

    explicit RequestHandle(const Napi::CallbackInfo & info) : ObjectWrap(info) {
        const Napi::Env env = info.Env();
        auto * engine = info[0].As<Napi::External<std::shared_ptr<OpenEngine>>>().Data();
        channel_ = Environment::of(env).channel();
        Napi::Promise::Deferred deferred(env);
        head_ = Napi::Persistent(deferred.Promise().As<Napi::Object>());
        auto waiting = std::make_shared<Waiting>(deferred, channel_, env);
        auto channel = channel_;
        request_ = std::make_shared<Request>(read_request(info[1].As<Napi::Object>()), [=](const ResponseHead * head) {
            auto copy = head ? std::make_shared<ResponseHead>(*head) : nullptr;
            channel->post([waiting, copy](Napi::Env env) {
                Napi::HandleScope scope(env);
                waiting->settle(copy ? head_to_js(env, *copy) : env.Null());
            });
        });
        try {
            (*engine)->engine.handle(request_);
        } catch (const CodedError & error) {
            waiting->release();
            throw to_js_error(env, error);
        }
    }

    ~RequestHandle() override {
        // Nobody can read it any more.
        if (request_) request_->cancel();
    }

  private:
    // A promise that keeps the event loop alive until it is settled; JS thread only.
    struct Waiting {
        Napi::Promise::Deferred deferred;
        std::unique_ptr<Channel::Ref> ref;

        Waiting(Napi::Promise::Deferred deferred, std::shared_ptr<Channel> channel, Napi::Env env)
            : deferred(deferred), ref(std::make_unique<Channel::Ref>(std::move(channel), env)) {}
        void settle(Napi::Value value) {
            if (!ref) return;
            release();
            deferred.Resolve(value);
        }
        void release() { ref.reset(); }
    };

    Napi::Value head(const Napi::CallbackInfo &) { return head_.Value(); }

    // A Buffer, null at the end, undefined after a cancellation.
    Napi::Value next(const Napi::CallbackInfo & info) {
        const Napi::Env env = info.Env();
        Napi::Promise::Deferred deferred(env);
        auto waiting = std::make_shared<Waiting>(deferred, channel_, env);
        auto channel = channel_;
        request_->next([channel, waiting](Request::Chunk chunk) {
            auto data = std::make_shared<Request::Chunk>(std::move(chunk));
            channel->post([waiting, data](Napi::Env env) {
                Napi::HandleScope scope(env);
                if (data->kind == Request::Chunk::end) {
                    waiting->settle(env.Null());
                } else if (data->kind == Request::Chunk::cancelled) {
                    waiting->settle(env.Undefined());
                } else {
                    waiting->settle(Napi::Buffer<char>::Copy(env, data->data.data(), data->data.size()));
                }
            });
        });
        return deferred.Promise();
    }

    void cancel(const Napi::CallbackInfo &) { request_->cancel(); }

    // A Deferred's own promise is valid only in the scope it was made in.
    Napi::ObjectReference head_;
    std::shared_ptr<Channel> channel_;
    std::shared_ptr<Request> request_;
};

Napi::Object placement_to_js(Napi::Env env, const DevicePlacement & placement) {
    auto js = Napi::Object::New(env);
    auto layers = Napi::Array::New(env, placement.layers.size());
    for (size_t i = 0; i < placement.layers.size(); i++) {
        layers.Set(static_cast<uint32_t>(i), placement.layers[i]);
    }
    js.Set("layers", layers);
    js.Set("head", placement.head);
    js.Set("bytes", static_cast<double>(placement.bytes));
    return js;
}

class EngineHandle : public Napi::ObjectWrap<EngineHandle> {
  public:
    static Napi::Function define(Napi::Env env) {
        return DefineClass(
            env, "Engine",
            {InstanceMethod<&EngineHandle::loaded>("loaded"), InstanceMethod<&EngineHandle::request>("request"),
             InstanceMethod<&EngineHandle::stats>("stats"), InstanceMethod<&EngineHandle::failure>("failure"),
             InstanceMethod<&EngineHandle::close>("close")},
            new Napi::FunctionReference(Napi::Persistent(RequestHandle::define(env))));
    }

    // new Engine(options, onProgress(stage, fraction), onWorkerLost(index, code, message)?) starts loading at once.
    explicit EngineHandle(const Napi::CallbackInfo & info) : ObjectWrap(info) {
        const Napi::Env env = info.Env();
        request_class_ = static_cast<Napi::FunctionReference *>(info.Data());
        auto & environment = Environment::of(env);
        auto channel = environment.channel();
        auto on_progress = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[1].As<Napi::Function>()));
        on_progress->SuppressDestruct();  // its last owner may be the engine's thread; Reset() below is on this one
        auto ref = std::make_shared<std::unique_ptr<Channel::Ref>>(std::make_unique<Channel::Ref>(channel, env));
        auto deferred = std::make_shared<Napi::Promise::Deferred>(env);
        loaded_ = Napi::Persistent(deferred->Promise().As<Napi::Object>());

        // The engine's thread may report before its constructor returns, but what it posts runs after this one.
        state_ = std::make_shared<std::shared_ptr<OpenEngine>>();
        Engine::Callbacks callbacks;
        callbacks.on_progress = [channel, on_progress](const std::string & stage, double fraction) {
            channel->post([on_progress, stage, fraction](Napi::Env env) {
                Napi::HandleScope scope(env);
                if (!on_progress->IsEmpty()) {
                    on_progress->Call({Napi::String::New(env, stage), Napi::Number::New(env, fraction)});
                }
            });
        };
        callbacks.on_loaded = [state = state_, channel, ref, deferred, on_progress](const CodedError * error) {
            auto copy = error ? std::make_shared<CodedError>(*error) : nullptr;
            channel->post([state, copy, ref, deferred, on_progress](Napi::Env env) {
                Napi::HandleScope scope(env);
                on_progress->Reset();
                ref->reset();
                if (copy) {
                    deferred->Reject(to_js_error(env, *copy).Value());
                    return;
                }
                const auto & placement = (*state)->engine.placement();
                auto js = Napi::Array::New(env, placement.size());
                for (size_t i = 0; i < placement.size(); i++) {
                    js.Set(static_cast<uint32_t>(i), placement_to_js(env, placement[i]));
                }
                deferred->Resolve(js);
            });
        };
        Engine::OnWorkerLost on_worker_lost = [](size_t, const CodedError &) {};
        std::shared_ptr<Napi::FunctionReference> lost;
        if (info[2].IsFunction()) {
            lost = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[2].As<Napi::Function>()));
            lost->SuppressDestruct();  // its last owner may be a worker's thread; close() resets it on this one
            on_worker_lost = [channel, lost](size_t index, const CodedError & error) {
                channel->post([lost, index, error](Napi::Env env) {
                    Napi::HandleScope scope(env);
                    if (lost->IsEmpty()) return;
                    lost->Call({Napi::Number::New(env, static_cast<double>(index)),
                                Napi::String::New(env, error.code()), Napi::String::New(env, error.what())});
                });
            };
        }
        *state_ = std::make_shared<OpenEngine>(read_options(info[0].As<Napi::Object>()), std::move(callbacks),
                                               std::move(on_worker_lost));
        (*state_)->on_worker_lost = lost;
        environment.add(*state_);
    }

  private:
    Napi::Value loaded(const Napi::CallbackInfo &) { return loaded_.Value(); }

    Napi::Value request(const Napi::CallbackInfo & info) {
        return request_class_->New(
            {Napi::External<std::shared_ptr<OpenEngine>>::New(info.Env(), state_.get()), info[0]});
    }

    Napi::Value stats(const Napi::CallbackInfo & info) {
        const Napi::Env env = info.Env();
        const EngineCounters counters = (*state_)->engine.counters();
        auto js = Napi::Object::New(env);
        js.Set("tokensGenerated", static_cast<double>(counters.tokens_generated));
        js.Set("promptTokens", static_cast<double>(counters.prompt_tokens));
        js.Set("tokensPerSecond", counters.tokens_per_second);
        js.Set("promptTokensPerSecond", counters.prompt_tokens_per_second);
        js.Set("activeRequests", static_cast<double>(counters.active_requests));
        auto workers = Napi::Array::New(env, counters.workers.size());
        for (size_t i = 0; i < counters.workers.size(); i++) {
            const WorkerTraffic & traffic = counters.workers[i];
            auto worker = Napi::Object::New(env);
            worker.Set("endpoint", traffic.endpoint);
            worker.Set("graphs", static_cast<double>(traffic.graphs));
            worker.Set("messagesSent", static_cast<double>(traffic.messages_sent));
            worker.Set("messagesReceived", static_cast<double>(traffic.messages_received));
            worker.Set("writes", static_cast<double>(traffic.writes));
            worker.Set("bytesSent", static_cast<double>(traffic.bytes_sent));
            worker.Set("bytesReceived", static_cast<double>(traffic.bytes_received));
            worker.Set("waits", static_cast<double>(traffic.waits));
            worker.Set("waitMs", static_cast<double>(traffic.wait_us) / 1000);
            worker.Set("computeMs", static_cast<double>(traffic.compute_us) / 1000);
            worker.Set("weightsSent", static_cast<double>(traffic.weights_sent));
            worker.Set("weightsReused", static_cast<double>(traffic.weights_reused));
            workers.Set(static_cast<uint32_t>(i), worker);
        }
        js.Set("workers", workers);
        return js;
    }

    // { endpoint, code, message } of the worker that failed first, or null.
    Napi::Value failure(const Napi::CallbackInfo & info) {
        const Napi::Env env = info.Env();
        const auto failure = (*state_)->engine.failure();
        if (!failure) return env.Null();
        auto js = Napi::Object::New(env);
        js.Set("endpoint", (*state_)->engine.endpoint(failure->index));
        js.Set("code", failure->error.code());
        js.Set("message", failure->error.what());
        return js;
    }

    Napi::Value close(const Napi::CallbackInfo & info) {
        const Napi::Env env = info.Env();
        auto open = *state_;
        auto * environment = &Environment::of(env);
        return environment->run<bool>(
            env,
            [open] {
                open->stop();
                return true;
            },
            [environment, open](Napi::Env env, bool &) -> Napi::Value {
                environment->remove(open);
                if (open->on_worker_lost) open->on_worker_lost->Reset();
                return env.Undefined();
            });
    }

    Napi::ObjectReference loaded_;
    Napi::FunctionReference * request_class_ = nullptr;
    std::shared_ptr<std::shared_ptr<OpenEngine>> state_;
};

}  // namespace

void export_engine(Napi::Env env, Napi::Object exports) {
    exports.Set("Engine", EngineHandle::define(env));
}

}  // namespace droid
