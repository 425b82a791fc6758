#include "engine.h"

#include <algorithm>

#include "ggml-backend.h"
#include "llama_log.h"
#include "log.h"
#include "params.h"
#include "server-common.h"
#include "server-context.h"
#include "server-http.h"
#include "server-queue.h"

// server-context links against llama-server's HTTP listener, which is not part of this build.
class server_http_context::Impl {};
server_http_context::server_http_context() = default;
server_http_context::~server_http_context() = default;

namespace droid {

namespace {

using Handler = server_http_context::handler_t;

struct RouteHandler {
    Route route;
    Handler server_routes::*handler;
    bool computes = false;  // or tells whether that is possible: answers 503 when a worker is lost
};

constexpr bool computes = true;

// llama-server's routes in single-model mode, without its page, resumable streams, tools, MCP and router.
const RouteHandler route_handlers[] = {
    {{"GET", "/health"}, &server_routes::get_health, computes},
    {{"GET", "/v1/health"}, &server_routes::get_health, computes},
    {{"GET", "/metrics"}, &server_routes::get_metrics},
    {{"GET", "/props"}, &server_routes::get_props},
    {{"POST", "/props"}, &server_routes::post_props},
    {{"GET", "/models"}, &server_routes::get_models},
    {{"GET", "/v1/models"}, &server_routes::get_models},
    {{"POST", "/completion"}, &server_routes::post_completions, computes},
    {{"POST", "/completions"}, &server_routes::post_completions, computes},
    {{"POST", "/v1/completions"}, &server_routes::post_completions_oai, computes},
    {{"POST", "/chat/completions"}, &server_routes::post_chat_completions, computes},
    {{"POST", "/v1/chat/completions"}, &server_routes::post_chat_completions, computes},
    {{"POST", "/v1/chat/completions/control"}, &server_routes::post_control},
    {{"POST", "/v1/responses"}, &server_routes::post_responses_oai, computes},
    {{"POST", "/responses"}, &server_routes::post_responses_oai, computes},
    {{"POST", "/v1/audio/transcriptions"}, &server_routes::post_transcriptions_oai, computes},
    {{"POST", "/audio/transcriptions"}, &server_routes::post_transcriptions_oai, computes},
    {{"POST", "/v1/messages"}, &server_routes::post_anthropic_messages, computes},
    {{"POST", "/infill"}, &server_routes::post_infill, computes},
    {{"POST", "/embedding"}, &server_routes::post_embeddings, computes},
    {{"POST", "/embeddings"}, &server_routes::post_embeddings, computes},
    {{"POST", "/v1/embeddings"}, &server_routes::post_embeddings_oai, computes},
    {{"POST", "/rerank"}, &server_routes::post_rerank, computes},
    {{"POST", "/reranking"}, &server_routes::post_rerank, computes},
    {{"POST", "/v1/rerank"}, &server_routes::post_rerank, computes},
    {{"POST", "/v1/reranking"}, &server_routes::post_rerank, computes},
    {{"POST", "/tokenize"}, &server_routes::post_tokenize},
    {{"POST", "/detokenize"}, &server_routes::post_detokenize},
    {{"POST", "/apply-template"}, &server_routes::post_apply_template},
    {{"POST", "/chat/completions/input_tokens"}, &server_routes::post_chat_completions_tok},
    {{"POST", "/v1/chat/completions/input_tokens"}, &server_routes::post_chat_completions_tok},
    {{"POST", "/responses/input_tokens"}, &server_routes::post_responses_tok_oai},
    {{"POST", "/v1/responses/input_tokens"}, &server_routes::post_responses_tok_oai},
    {{"POST", "/v1/messages/count_tokens"}, &server_routes::post_anthropic_count_tokens},
    {{"GET", "/lora-adapters"}, &server_routes::get_lora_adapters},
    {{"POST", "/lora-adapters"}, &server_routes::post_lora_adapters},
    {{"GET", "/slots"}, &server_routes::get_slots},
    {{"POST", "/slots/:id_slot"}, &server_routes::post_slots},
};

// As many as llama-server; a stream whose reader is slow holds one.
constexpr size_t max_request_threads = 1024;

server_http_res_ptr error_response(const std::string & message, error_type type) {
    auto response = std::make_unique<server_http_res>();
    const json error = format_error_response(message, type);
    response->status = json_value(error, "code", 500);
    response->data = safe_json_to_str({{"error", error}});
    return response;
}

// What llama-server's listener does around every handler: an exception becomes an error answer.
server_http_res_ptr call(const Handler & handler, const server_http_req & request) {
    try {
        return handler(request);
    } catch (const std::invalid_argument & error) {
        return error_response(error.what(), ERROR_TYPE_INVALID_REQUEST);
    } catch (const std::exception & error) {
        return error_response(error.what(), ERROR_TYPE_SERVER);
    } catch (...) {
        return error_response("unknown error", ERROR_TYPE_SERVER);
    }
}

// llama.cpp's JSON code and chat templates recurse over a request, so its nesting is bounded before they see it. Real
// requests stay below 50; a thread's stack lasts for thousands.
constexpr int max_json_depth = 128;

bool nested_too_deeply(const std::string & json) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < json.size(); i++) {
        const char c = json[i];
        if (in_string) {
            if (c == '\\')
                i++;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > max_json_depth) return true;
        } else if (c == '}' || c == ']') {
            depth--;
        }
    }
    return false;
}

ResponseHead head_of(const server_http_res & response) {
    ResponseHead head;
    head.status = response.status;
    for (const auto & [name, value] : response.headers) {
        std::string lower = name;
        std::transform(lower.begin(), lower.end(), lower.begin(), [](unsigned char c) { return std::tolower(c); });
        head.headers[lower] = value;
    }
    head.headers["content-type"] = response.content_type;
    return head;
}

// Thrown from the progress callback, the one way to end a load early: llama.cpp ignores what the callback returns.
struct LoadCancelled : std::runtime_error {
    LoadCancelled() : std::runtime_error("cancelled") {}
};

}  // namespace

struct Engine::Loaded {
    // In the order of their lifetimes: the model on a worker's device goes before the worker.
    std::optional<Workers> workers;
    common_params params;
    server_context context;
    std::unique_ptr<server_routes> routes;
    server_response * results = nullptr;
};

const std::vector<Route> & Engine::routes() {
    static const std::vector<Route> list = [] {
        std::vector<Route> routes;
        for (const auto & entry : route_handlers) routes.push_back(entry.route);
        return routes;
    }();
    return list;
}

Engine::Engine(EngineOptions options, Callbacks callbacks, OnWorkerLost on_worker_lost)
    : options_(std::move(options)),
      callbacks_(std::move(callbacks)),
      on_worker_lost_(std::move(on_worker_lost)),
      pool_(max_request_threads) {
    thread_ = std::thread([this] { run(); });
}

Engine::~Engine() {
    stop();
}

void Engine::run() {
    std::unique_ptr<CodedError> error;
    try {
        load();
    } catch (const CodedError & e) {
        error = std::make_unique<CodedError>(e);
    } catch (const std::exception & e) {
        error = std::make_unique<CodedError>("DROID_LOAD_FAILED", e.what());
    }
    if (stopping_) error = std::make_unique<CodedError>("DROID_CLOSED", "The context was closed while it was loading.");
    if (!error) {
        {
            std::lock_guard<std::mutex> lock(mutex_);
            ready_ = true;
        }
        callbacks_.on_loaded(nullptr);
        callbacks_ = {};  // what they captured must not live as long as the engine, which it may own
        run_loop();
    }
    std::unique_ptr<Loaded> loaded;
    const EngineCounters last = counters();
    const auto last_failure = failure();
    {
        std::lock_guard<std::mutex> lock(mutex_);
        last_counters_ = last;
        last_counters_.active_requests = 0;
        last_failure_ = last_failure;
        ready_ = false;
        loaded = std::move(loaded_);
    }
    loaded.reset();
    if (error) {
        callbacks_.on_loaded(error.get());
        callbacks_ = {};
    }
    std::lock_guard<std::mutex> lock(mutex_);
    ended_ = true;
    changed_.notify_all();
}

void Engine::run_loop() {
    try {
        loaded_->context.start_loop();
        return;
    } catch (const std::exception & error) {
        LOG_ERR("the engine's loop failed: %s\n", error.what());
    }
    // Nobody answers any more; the handlers of what was asked use loaded_, so they end before it goes.
    {
        std::lock_guard<std::mutex> lock(mutex_);
        ready_ = false;
    }
    cancel_requests();
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return requests_.empty(); });
}

void Engine::cancel_requests() {
    std::vector<std::shared_ptr<Request>> requests;
    {
        std::lock_guard<std::mutex> lock(mutex_);
        requests.assign(requests_.begin(), requests_.end());
    }
    for (const auto & request : requests) request->cancel();  // takes the lock to wake its reader
}

void Engine::load() {
    auto loaded = std::make_unique<Loaded>();
    Workers & workers = loaded->workers.emplace(options_, interrupt_, on_worker_lost_);
    const std::vector<ggml_backend_dev_t> & devices = workers.devices();
    workers.offer_weights([this](double fraction) {
        callbacks_.on_progress("weights", fraction);
        return !stopping_;
    });
    if (stopping_) return;
    loaded->params = make_params(options_, devices);
    loaded->context.set_state_callback([this](server_state, json state) {
        if (stopping_) throw LoadCancelled();
        if (state.contains("value")) {
            callbacks_.on_progress(json_value(state, "current", std::string()), json_value(state, "value", 0.0));
        }
    });
    // The handlers' routes must exist before the model: they register for its states.
    loaded->routes = std::make_unique<server_routes>(loaded->params, loaded->context);
    loaded->results = &loaded->context.get_response_reader().queue_results;

    ErrorLines errors;
    bool ok = false;
    try {
        ok = loaded->context.load_model(loaded->params);
    } catch (const LoadCancelled &) {
        return;
    }
    if (stopping_) return;
    if (const auto failure = workers.failure()) throw failure->error;
    if (!ok) {
        if (const auto failure = workers.allocation_failure()) throw *failure;
        const std::string why = errors.text();
        const bool memory = why.find("allocate") != std::string::npos;
        throw CodedError(memory ? "DROID_OUT_OF_MEMORY" : "DROID_LOAD_FAILED",
                         "llama.cpp could not load " + options_.model + (why.empty() ? "." : ": " + why));
    }
    loaded->routes->update_meta(loaded->context);

    const auto by_device = read_placement(llama_get_model(loaded->context.get_llama_context()), devices);
    placement_.resize(options_.workers.size() + 1);
    placement_[0] = by_device[0];
    for (size_t i = 0; i < devices.size(); i++) placement_[workers.index_of_device(i) + 1] = by_device[i + 1];

    std::lock_guard<std::mutex> lock(mutex_);
    loaded_ = std::move(loaded);
}

void Engine::handle(std::shared_ptr<Request> request) {
    std::lock_guard<std::mutex> lock(mutex_);
    if (!ready_ || stopping_) throw CodedError("DROID_CLOSED", "The context is closed.");
    requests_.insert(request);
    // A reader that the engine keeps waiting is woken to see that its request was cancelled.
    request->set_wake([this] {
        std::lock_guard<std::mutex> guard(mutex_);
        if (loaded_) loaded_->results->wake();
    });
    pool_.submit([this, request] {
        answer(*request);
        forget(request);
    });
}

void Engine::forget(const std::shared_ptr<Request> & request) {
    {
        std::lock_guard<std::mutex> lock(mutex_);
        requests_.erase(request);
        changed_.notify_all();
    }
    // Last, so that whoever sees the end of the answer also sees the request gone from the counters.
    request->finish();
}

void Engine::answer(Request & request) {
    if (request.cancelled()) return;
    // loaded_ cannot go while a request is registered: stop() waits for it before the loop may end.
    const std::function<bool()> should_stop = [&request] { return request.cancelled(); };
    std::map<std::string, uploaded_file> files;
    for (const auto & [name, file] : request.data.files) {
        files[name] = uploaded_file{file.data, file.filename, file.content_type};
    }
    const server_http_req req{request.data.params, request.data.headers, request.data.path, request.data.query_string,
                              request.data.body,   std::move(files),     should_stop};
    server_request_cancelled = request.cancel_flag();
    server_http_res_ptr response;
    if (nested_too_deeply(request.data.body)) {
        response =
            error_response("The JSON of the request is nested deeper than " + std::to_string(max_json_depth) + ".",
                           ERROR_TYPE_INVALID_REQUEST);
    }
    for (const auto & entry : route_handlers) {
        if (response || request.data.method != entry.route.method || request.data.route != entry.route.path) continue;
        if (const auto lost = entry.computes ? loaded_->workers->failure() : std::nullopt) {
            response = error_response(lost->error.what(), ERROR_TYPE_UNAVAILABLE);
        } else {
            response = call((*loaded_->routes).*entry.handler, req);
        }
    }
    server_request_cancelled = nullptr;  // the thread goes on to another request
    if (!response) response = error_response("File Not Found", ERROR_TYPE_NOT_FOUND);

    request.head(head_of(*response));
    if (response->is_stream()) {
        for (bool more = true; more && request.wait_for_reader();) {
            std::string chunk;
            // An empty chunk is a step without output; the reader goes on waiting.
            while (more && chunk.empty() && !request.cancelled()) more = response->next(chunk);
            if (!chunk.empty()) request.deliver(std::move(chunk));
        }
    } else if (!response->data.empty() && request.wait_for_reader()) {
        request.deliver(std::move(response->data));
    }
    response->on_complete();
}

EngineCounters Engine::counters() const {
    std::lock_guard<std::mutex> lock(mutex_);
    EngineCounters counters = last_counters_;
    if (!loaded_) return counters;
    const auto & live = loaded_->results->live;
    counters.tokens_generated = live.n_gen;
    counters.prompt_tokens = live.n_prompt;
    if (live.t_gen_us) counters.tokens_per_second = live.n_gen_timed * 1e6 / live.t_gen_us;
    if (live.t_prompt_us) counters.prompt_tokens_per_second = live.n_prompt * 1e6 / live.t_prompt_us;
    counters.active_requests = requests_.size();
    counters.workers.clear();
    for (size_t i = 0; i < options_.workers.size(); i++) {
        WorkerTraffic traffic;
        traffic.endpoint = options_.workers[i].endpoint;
        if (const rpc::WorkerCounters * worker = loaded_->workers->counters(i)) {
            traffic.graphs = worker->graphs;
            traffic.messages_sent = worker->messages_sent;
            traffic.messages_received = worker->messages_received;
            traffic.writes = worker->writes;
            traffic.bytes_sent = worker->bytes_sent;
            traffic.bytes_received = worker->bytes_received;
            traffic.waits = worker->waits;
            traffic.wait_us = worker->wait_us;
            traffic.compute_us = worker->compute_us;
            traffic.weights_sent = worker->weights_sent;
            traffic.weights_reused = worker->weights_reused;
        }
        counters.workers.push_back(traffic);
    }
    return counters;
}

std::optional<Workers::Failure> Engine::failure() const {
    std::lock_guard<std::mutex> lock(mutex_);
    return loaded_ ? loaded_->workers->failure() : last_failure_;
}

void Engine::stop() {
    std::lock_guard<std::mutex> once(stop_mutex_);
    if (!thread_.joinable()) return;
    stopping_ = true;
    cancel_requests();
    pool_.stop();
    {
        const auto patience = std::chrono::steady_clock::now() + std::chrono::seconds(1);
        std::unique_lock<std::mutex> lock(mutex_);
        // terminate() before the loop has begun is lost, hence more than once.
        while (!ended_) {
            if (loaded_) loaded_->context.terminate();
            if (std::chrono::steady_clock::now() > patience) interrupt_->trip();
            changed_.wait_for(lock, std::chrono::milliseconds(10));
        }
    }
    thread_.join();
    interrupt_.reset();  // a closed engine may wait long for the garbage collector, and this holds descriptors
}

}  // namespace droid
