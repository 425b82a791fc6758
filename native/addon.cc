#include <napi.h>

#include "cpu/level.h"
#include "engine.h"
#include "engine_binding.h"
#include "environment.h"
#include "ggml-backend.h"
#include "llama.h"
#include "llama_log.h"
#include "measure_compute.h"
#include "model_info.h"
#include "rpc/protocol.h"
#include "rpc/socket.h"
#include "rpc_server_binding.h"
#include "workers.h"

namespace droid {

namespace {

Napi::Array to_js(Napi::Env env, const std::vector<uint64_t> & numbers) {
    auto js = Napi::Array::New(env, numbers.size());
    for (size_t i = 0; i < numbers.size(); i++) {
        js.Set(static_cast<uint32_t>(i), static_cast<double>(numbers[i]));
    }
    return js;
}

Napi::Value inspect_model(const Napi::CallbackInfo & info) {
    const std::string path = info[0].As<Napi::String>().Utf8Value();
    return Environment::of(info.Env())
        .run<ModelInfo>(
            info.Env(), [path] { return read_model_info(path); },
            [](Napi::Env env, ModelInfo & model) -> Napi::Value {
                auto js = Napi::Object::New(env);
                js.Set("architecture", model.architecture);
                js.Set("name", model.name);
                js.Set("contextLength", model.context_length);
                js.Set("layerBytes", to_js(env, model.layer_bytes));
                js.Set("outerBytes", static_cast<double>(model.other_bytes));
                auto tensors = Napi::Array::New(env, model.tensors.size());
                for (size_t i = 0; i < model.tensors.size(); i++) {
                    const auto & [data, layer] = model.tensors[i];
                    auto tensor = Napi::Object::New(env);
                    tensor.Set("name", data.name);
                    tensor.Set("path", data.path);
                    tensor.Set("offset", static_cast<double>(data.offset));
                    tensor.Set("size", static_cast<double>(data.size));
                    tensor.Set("layer", layer);
                    tensors.Set(static_cast<uint32_t>(i), tensor);
                }
                js.Set("tensors", tensors);
                js.Set("headBytes", static_cast<double>(model.head_bytes));
                js.Set("kvBytesPerTokenLayer", static_cast<double>(model.kv_bytes_per_token_layer));
                js.Set("activeBytesPerLayer", to_js(env, model.active_bytes_per_layer));
                js.Set("embeddingLength", static_cast<double>(model.embedding_length));
                js.Set("feedForwardLength", static_cast<double>(model.feed_forward_length));
                js.Set("headCount", static_cast<double>(model.head_count));
                js.Set("vocabularySize", static_cast<double>(model.vocabulary_size));
                return js;
            });
}

// measureCompute(threads, milliseconds)
Napi::Value measure(const Napi::CallbackInfo & info) {
    auto & environment = Environment::of(info.Env());
    const int threads = info[0].As<Napi::Number>().Int32Value();
    const std::chrono::milliseconds time(info[1].As<Napi::Number>().Int64Value());
    return environment.run<ComputeSpeed>(
        info.Env(),
        [&environment, threads, time] {
            return measure_compute(threads, time, [&environment] { return environment.ending(); });
        },
        [](Napi::Env env, ComputeSpeed & speed) -> Napi::Value {
            auto js = Napi::Object::New(env);
            js.Set("weightBytesPerSecond", speed.weight_bytes_per_second);
            js.Set("flopsPerSecond", speed.flops_per_second);
            return js;
        });
}

Napi::Value build_info(const Napi::CallbackInfo & info) {
    const Napi::Env env = info.Env();
    auto js = Napi::Object::New(env);
    js.Set("llamaCpp", llama_version());
    js.Set("systemInfo", llama_print_system_info());
    js.Set("cpuLevel", cpu_level());
    js.Set("rpcProtocol", std::to_string(rpc::protocol_major) + "." + std::to_string(rpc::protocol_minor) + "." +
                              std::to_string(rpc::protocol_patch));
    js.Set("maxWorkers", static_cast<double>(max_workers));
    auto routes = Napi::Array::New(env);
    for (const Route & route : Engine::routes()) {
        auto entry = Napi::Object::New(env);
        entry.Set("method", route.method);
        entry.Set("path", route.path);
        routes.Set(routes.Length(), entry);
    }
    js.Set("routes", routes);
    return js;
}

void set_level(const Napi::CallbackInfo & info) {
    set_log_level(static_cast<LogLevel>(info[0].As<Napi::Number>().Int32Value()));
}

void shutdown(const Napi::CallbackInfo & info) {
    Environment::of(info.Env()).shutdown();
}

// Two connected stream sockets, for bytes between a thread of Node's and one of ours.
Napi::Value create_socket_pair(const Napi::CallbackInfo & info) {
    const Napi::Env env = info.Env();
    const auto [first, second] = [&] {
        try {
            return rpc::socket_pair();
        } catch (const CodedError & error) {
            throw to_js_error(env, error);
        }
    }();
    auto pair = Napi::Array::New(env, 2);
    pair.Set(0u, Napi::Number::New(env, first));
    pair.Set(1u, Napi::Number::New(env, second));
    return pair;
}

void close_descriptor(const Napi::CallbackInfo & info) {
    rpc::close_socket(info[0].As<Napi::Number>().Int32Value());
}

Napi::Object init(Napi::Env env, Napi::Object exports) {
    cpu_level();  // throws where this processor cannot run the addon
    init_llama_process();
    env.SetInstanceData(new Environment(env));
    exports.Set("inspectModel", Napi::Function::New<inspect_model>(env));
    exports.Set("measureCompute", Napi::Function::New<measure>(env));
    exports.Set("buildInfo", Napi::Function::New<build_info>(env));
    exports.Set("setLogLevel", Napi::Function::New<set_level>(env));
    exports.Set("createSocketPair", Napi::Function::New<create_socket_pair>(env));
    exports.Set("closeDescriptor", Napi::Function::New<close_descriptor>(env));
    exports.Set("shutdown", Napi::Function::New<shutdown>(env));
    export_engine(env, exports);
    export_rpc_server(env, exports);
    return exports;
}

}  // namespace

NODE_API_MODULE(droid_llama, init)

}  // namespace droid
