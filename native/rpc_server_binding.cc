#include "rpc_server_binding.h"

#include "convert.h"
#include "environment.h"
#include "rpc/server/server.h"

namespace droid {

namespace {

// A running server. The environment holds it until it is closed, so that it goes on, and keeps the event loop alive,
// when JS drops the handle.
class OpenServer : public Stoppable {
  public:
    explicit OpenServer(rpc::ServerOptions options) : server(std::move(options)) {}
    void stop() override { server.stop(); }

    rpc::Server server;
    std::shared_ptr<Napi::FunctionReference> on_event;  // these two: JS thread only
    std::unique_ptr<Channel::Ref> ref;
};

// Event lines on their way to JS; a reader that is too slow loses lines instead of memory.
constexpr int max_pending_events = 1024;

class RpcServerHandle : public Napi::ObjectWrap<RpcServerHandle> {
  public:
    static Napi::Function define(Napi::Env env) {
        return DefineClass(
            env, "RpcServer",
            {InstanceAccessor<&RpcServerHandle::port>("port"), InstanceMethod<&RpcServerHandle::devices>("devices"),
             InstanceMethod<&RpcServerHandle::adopt>("adopt"), InstanceMethod<&RpcServerHandle::stats>("stats"),
             InstanceMethod<&RpcServerHandle::close>("close")});
    }

    // new RpcServer(options, onEvent(line)?) listens at once; it keeps the event loop alive until it is closed.
    explicit RpcServerHandle(const Napi::CallbackInfo & info) : ObjectWrap(info) {
        const Napi::Env env = info.Env();
        auto & environment = Environment::of(env);
        const auto from = info[0].As<Napi::Object>();
        rpc::ServerOptions options;
        options.host = get_string(from, "host");
        options.port = static_cast<uint16_t>(get_number(from, "port"));
        options.threads = static_cast<int>(get_number(from, "threads"));
        options.max_clients = static_cast<int>(get_number(from, "maxClients"));
        options.memory_limit = static_cast<uint64_t>(get_number(from, "memoryLimit"));
        options.client_memory_limit = static_cast<uint64_t>(get_number(from, "clientMemoryLimit"));
        options.cache_dir = get_string(from, "cacheDir");
        options.cache_limit = static_cast<uint64_t>(get_number(from, "cacheLimit"));
        options.handshake_timeout_ms = static_cast<int>(get_number(from, "handshakeTimeoutMs"));
        options.verbose = get_bool(from, "verbose");
        std::shared_ptr<Napi::FunctionReference> on_event;
        if (info[1].IsFunction()) {
            on_event = std::make_shared<Napi::FunctionReference>(Napi::Persistent(info[1].As<Napi::Function>()));
            on_event->SuppressDestruct();  // its last owner may be a session's thread; close() resets it on this one
            auto pending = std::make_shared<std::atomic<int>>(0);
            options.on_event = [channel = environment.channel(), on_event, pending](const std::string & line) {
                if (pending->fetch_add(1) >= max_pending_events) {
                    pending->fetch_sub(1);
                    return;
                }
                channel->post([on_event, pending, line](Napi::Env env) {
                    Napi::HandleScope scope(env);
                    pending->fetch_sub(1);
                    if (!on_event->IsEmpty()) on_event->Call({Napi::String::New(env, line)});
                });
            };
        }
        try {
            open_ = std::make_shared<OpenServer>(std::move(options));
        } catch (const CodedError & error) {
            throw to_js_error(env, error);
        }
        open_->on_event = on_event;
        open_->ref = std::make_unique<Channel::Ref>(environment.channel(), env);
        environment.add(open_);
    }

  private:
    Napi::Value port(const Napi::CallbackInfo & info) { return Napi::Number::New(info.Env(), open_->server.port()); }

    Napi::Value devices(const Napi::CallbackInfo & info) {
        const Napi::Env env = info.Env();
        auto list = Napi::Array::New(env);
        for (const rpc::DeviceInfo & device : open_->server.devices()) {
            auto js = Napi::Object::New(env);
            js.Set("name", device.name);
            js.Set("description", device.description);
            js.Set("memoryTotal", static_cast<double>(device.memory_total));
            js.Set("memoryFree", static_cast<double>(device.memory_free));
            list.Set(list.Length(), js);
        }
        return list;
    }

    // adopt(fd, peer)
    void adopt(const Napi::CallbackInfo & info) {
        open_->server.adopt(info[0].As<Napi::Number>().Int32Value(), info[1].As<Napi::String>().Utf8Value());
    }

    Napi::Value stats(const Napi::CallbackInfo & info) {
        const auto & counters = open_->server.counters();
        auto js = Napi::Object::New(info.Env());
        js.Set("clients", static_cast<double>(counters.clients));
        js.Set("clientsTotal", static_cast<double>(counters.clients_total));
        js.Set("clientsRefused", static_cast<double>(counters.clients_refused));
        js.Set("clientsDropped", static_cast<double>(counters.clients_dropped));
        js.Set("graphsComputed", static_cast<double>(counters.graphs_computed));
        js.Set("messagesReceived", static_cast<double>(counters.messages_received));
        js.Set("messagesSent", static_cast<double>(counters.messages_sent));
        js.Set("bytesReceived", static_cast<double>(counters.bytes_received));
        js.Set("bytesSent", static_cast<double>(counters.bytes_sent));
        js.Set("bytesAllocated", static_cast<double>(counters.bytes_allocated));
        js.Set("bytesWeights", static_cast<double>(counters.bytes_weights));
        js.Set("bytesRepacked", static_cast<double>(counters.bytes_repacked));
        js.Set("bytesWeightsReceived", static_cast<double>(counters.bytes_weights_received));
        js.Set("bytesWeightsReused", static_cast<double>(counters.bytes_weights_reused));
        js.Set("computeMs", static_cast<double>(counters.compute_us) / 1000);
        return js;
    }

    Napi::Value close(const Napi::CallbackInfo & info) {
        auto open = open_;
        auto * environment = &Environment::of(info.Env());
        return environment->run<bool>(
            info.Env(),
            [open] {
                open->stop();
                return true;
            },
            [environment, open](Napi::Env env, bool &) -> Napi::Value {
                environment->remove(open);
                if (open->on_event) open->on_event->Reset();
                open->ref.reset();
                return env.Undefined();
            });
    }

    std::shared_ptr<OpenServer> open_;
};

}  // namespace

void export_rpc_server(Napi::Env env, Napi::Object exports) {
    exports.Set("RpcServer", RpcServerHandle::define(env));
}

}  // namespace droid
