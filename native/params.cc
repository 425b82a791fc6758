#include "params.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <regex>
#include <set>
#include <unordered_map>

#include "arg.h"
#include "chat.h"
#include "errors.h"
#include "ggml-backend.h"
#include "llama.h"

namespace droid {

namespace {

[[noreturn]] void invalid(const std::string & message) {
    throw CodedError("DROID_INVALID_ARGUMENT", message);
}

// Flags that llama.cpp's parser knows but that must not pass, and what to do instead. Matched by any of their names.
struct Refusal {
    std::set<std::string> flags;
    const char * reason;
};

const std::vector<Refusal> & refusals() {
    static const std::vector<Refusal> list = {
        {{"--help", "--version", "--cache-list", "--completion-bash", "--list-devices"},
         "it makes llama.cpp print something and end the process"},
        {{"--model", "--model-url", "--hf-repo", "--hf-file", "--docker-repo", "--hf-token", "--models-dir",
          "--models-preset", "--models-max", "--models-autoload", "--offline"},
         "the model is given by the model option (-m)"},
        {{"--rpc", "--device", "--tensor-split", "--gpu-layers", "--split-mode", "--main-gpu", "--fit", "--fit-target",
          "--fit-ctx", "--fit-print", "--no-op-offload", "--op-offload", "--kv-offload", "--cpu-moe", "--n-cpu-moe"},
         "placement is decided by rpc, tensorSplit and head"},
        {{"--ctx-size"}, "use contextSize (-c)"},
        {{"--batch-size"}, "use batchSize (-b)"},
        {{"--ubatch-size"}, "use ubatchSize (-ub)"},
        {{"--parallel"}, "use parallel (-np)"},
        {{"--threads"}, "use threads (-t)"},
        {{"--load-mode", "--mmap", "--mlock", "--direct-io"}, "use mmap (--no-mmap)"},
        {{"--embedding", "--embeddings"}, "use embeddings"},
        {{"--rerank", "--reranking"}, "use reranking"},
        {{"--pooling"}, "use pooling"},
        {{"--chat-template", "--chat-template-file"}, "use chatTemplate"},
        {{"--host",         "--port",         "--reuse-port",     "--path",          "--api-prefix",
          "--api-key",      "--api-key-file", "--ssl-key-file",   "--ssl-cert-file", "--timeout",
          "--threads-http", "--cors-origins", "--cors-methods",   "--cors-headers",  "--cors-credentials",
          "--ui",           "--ui-config",    "--ui-config-file", "--webui",         "--ui-mcp-proxy"},
         "HTTP is served by this package; use the options of listen()"},
        {{"--tools", "--tools-runtime", "--mcp-config", "--mcp-servers-config", "--mcp-servers-json", "--agent"},
         "the engine runs no tools of its own"},
        {{"--log-disable", "--log-file", "--log-colors", "--log-prefix", "--log-timestamps", "--log-verbose",
          "--verbosity", "--log-verbosity", "--log-json", "--verbose"},
         "llama.cpp's log belongs to the whole process; use logLevel"},
        {{"--sleep-idle-seconds"}, "a context stays loaded until it is closed"},
        {{"--numa", "--prio", "--prio-batch", "--check-tensors-strict"}, "it changes the whole process"},
    };
    return list;
}

void refuse_owned(const common_arg & option, const std::string & given) {
    for (const auto & refusal : refusals()) {
        for (const std::string & name : option.get_args()) {
            if (refusal.flags.count(name)) {
                invalid("The llama-server flag " + given + " cannot be used here: " + refusal.reason + ".");
            }
        }
    }
}

bool parse_bool(const std::string & value) {
    if (common_arg_utils::is_truthy(value)) {
        return true;
    }
    if (common_arg_utils::is_falsey(value)) {
        return false;
    }
    throw std::invalid_argument("expected on or off, got \"" + value + "\"");
}

void apply_environment(common_params & params, std::vector<common_arg> & options) {
    for (auto & option : options) {
        std::string value;
        if (!option.get_value_from_env(value)) {
            continue;
        }
        refuse_owned(option, option.env ? option.env : option.args.front());
        try {
            if (option.handler_void) {
                if (common_arg_utils::is_truthy(value)) option.handler_void(params);
            } else if (option.handler_int) {
                option.handler_int(params, std::stoi(value));
            } else if (option.handler_bool) {
                option.handler_bool(params, parse_bool(value));
            } else if (option.handler_string) {
                option.handler_string(params, value);
            }
        } catch (const CodedError &) {
            throw;
        } catch (const std::exception & error) {
            invalid("The variable " + std::string(option.env) + "=" + value + " was refused: " + error.what());
        }
    }
}

// Runs the handlers of llama.cpp's option table over args. common_params_parse() itself is not used: it exits on some
// flags and errors, reads configuration files and every LLAMA_ARG_* variable, writes to stderr, and pads the tensor
// overrides so that none can be added behind them.
void apply_arguments(common_params & params, std::vector<common_arg> & options, const std::vector<std::string> & args) {
    std::unordered_map<std::string, std::pair<common_arg *, bool>> by_flag;
    for (auto & option : options) {
        for (const char * flag : option.args) by_flag[flag] = {&option, true};
        for (const char * flag : option.args_neg) by_flag[flag] = {&option, false};
    }
    for (size_t i = 0; i < args.size(); i++) {
        std::string flag = args[i];
        if (flag.rfind("--", 0) == 0) {
            std::replace(flag.begin(), flag.end(), '_', '-');
        }
        const auto found = by_flag.find(flag);
        if (found == by_flag.end()) {
            invalid("llama-server has no flag \"" + args[i] + "\".");
        }
        const common_arg & option = *found->second.first;
        refuse_owned(option, args[i]);
        const auto next = [&]() -> const std::string & {
            if (++i >= args.size()) {
                invalid("The llama-server flag " + flag + " needs a value (" +
                        (option.value_hint ? option.value_hint : "see its help") + ").");
            }
            return args[i];
        };
        try {
            if (option.handler_void) {
                option.handler_void(params);
            } else if (option.handler_bool) {
                option.handler_bool(params, found->second.second);
            } else if (option.handler_int) {
                option.handler_int(params, std::stoi(next()));
            } else if (option.handler_string) {
                option.handler_string(params, next());
            } else if (option.handler_str_str) {
                const std::string & first = next();
                option.handler_str_str(params, first, next());
            }
        } catch (const CodedError &) {
            throw;
        } catch (const std::exception & error) {
            invalid("The llama-server flag " + flag + " was refused: " + error.what());
        }
    }
}

enum llama_pooling_type pooling_type(const std::string & name) {
    static const std::map<std::string, enum llama_pooling_type> types = {
        {"none", LLAMA_POOLING_TYPE_NONE}, {"mean", LLAMA_POOLING_TYPE_MEAN}, {"cls", LLAMA_POOLING_TYPE_CLS},
        {"last", LLAMA_POOLING_TYPE_LAST}, {"rank", LLAMA_POOLING_TYPE_RANK},
    };
    const auto found = types.find(name);
    if (found == types.end()) {
        invalid("pooling is \"" + name + "\"; it must be none, mean, cls, last or rank.");
    }
    return found->second;
}

std::string escape_regex(const std::string & text) {
    static const std::regex special(R"([.^$|()\[\]{}*+?\\])");
    return std::regex_replace(text, special, R"(\$&)");
}

// The override list borrows its patterns, so they must live as long as any model: each distinct one is kept for good.
const char * keep_pattern(const std::string & pattern) {
    static std::mutex mutex;
    static std::set<std::string> patterns;
    std::lock_guard<std::mutex> lock(mutex);
    return patterns.insert(pattern).first->c_str();
}

// llama.cpp offloads the LAST n_gpu_layers - 1 layers plus the head, and spreads them over the devices by
// tensor_split. Layer counts as shares come out exactly: both sides of its comparison are then the same division.
// Keeping the head here takes an override for every tensor outside the layers; the others stay on the CPU anyway.
// Anchored, since a bare output\.weight also matches attn_output.weight. (Overriding blk.* instead would move weights
// but leave their KV cache behind.)
void place(common_params & params, const EngineOptions & options, const std::vector<ggml_backend_dev_t> & devices) {
    uint32_t offloaded = 0;
    size_t device = 0;
    for (const auto & worker : options.workers) {
        const bool last = &worker == &options.workers.back();
        if (worker.layers == 0 && !(last && options.head_on_worker)) {
            continue;
        }
        params.devices.push_back(devices.at(device));
        params.tensor_split[device++] = static_cast<float>(worker.layers);
        offloaded += worker.layers;
    }
    if (device == 0) {
        params.n_gpu_layers = 0;
        return;
    }
    params.devices.push_back(nullptr);
    params.tensor_split[device - 1] += 1;  // the head's slot
    params.n_gpu_layers = static_cast<int32_t>(offloaded) + 1;
    if (!options.head_on_worker) {
        for (const auto & [data, layer] : options.tensors) {
            if (layer >= 0) continue;
            params.tensor_buft_overrides.push_back(
                {keep_pattern("^" + escape_regex(data.name) + "$"), ggml_backend_cpu_buffer_type()});
        }
    }
}

}  // namespace

// A prompt's ubatches run through the devices as through a pipeline, so many are better than large ones; below 64
// tokens a CPU's kernels lose more than that gains.
constexpr int32_t pipeline_ubatch = 64;

// The tokens of an image that attend to each other both ways must fit one ubatch, or llama.cpp asserts. 256 of them are
// common; this is llama.cpp's own default.
constexpr int32_t image_ubatch = 512;

common_params make_params(const EngineOptions & options, const std::vector<ggml_backend_dev_t> & devices) {
    common_params params;
    auto parser = common_params_parser_init(params, LLAMA_EXAMPLE_SERVER);

    // Defaults of ours that a llama-server flag may still change.
    params.endpoint_metrics = true;
    if (!devices.empty()) {
        // Saving an idle slot reads the workers' KV cache back over the network between requests.
        params.cache_ram_mib = 0;
        if (!options.embeddings && !options.reranking) params.n_ubatch = pipeline_ubatch;
        // Between two graphs lies a wait for the network: spinning would only take the cores from others.
        params.cpuparams.poll = 0;
        params.cpuparams_batch.poll = 0;
        params.cache_idle_slots = false;
    }

    if (options.llama_env) {
        apply_environment(params, parser.options);
    }
    if (!options.draft.empty()) {
        apply_arguments(params, parser.options, {"--spec-draft-model", options.draft});
    }
    apply_arguments(params, parser.options, options.llama_args);

    params.model.path = options.model;
    params.n_ctx = static_cast<int32_t>(options.context_size);
    if (options.batch_size) params.n_batch = static_cast<int32_t>(options.batch_size);
    if (options.ubatch_size) params.n_ubatch = static_cast<int32_t>(options.ubatch_size);
    if (!params.mmproj.path.empty()) params.n_ubatch = std::max(params.n_ubatch, image_ubatch);
    params.n_ubatch = std::min(params.n_ubatch, params.n_batch);
    params.n_parallel = static_cast<int32_t>(options.parallel);
    if (options.threads) params.cpuparams.n_threads = static_cast<int>(options.threads);
    params.load_mode = options.mmap ? LLAMA_LOAD_MODE_AUTO : LLAMA_LOAD_MODE_NONE;
    params.fit_params = false;
    for (const auto & lora : options.loras) {
        common_adapter_lora_info info;
        info.path = lora.path;
        info.scale = lora.scale;
        params.lora_adapters.push_back(info);
    }
    if (!options.pooling.empty()) params.pooling_type = pooling_type(options.pooling);
    if (options.reranking) {
        params.embedding = true;
        params.pooling_type = LLAMA_POOLING_TYPE_RANK;
    }
    if (options.embeddings) params.embedding = true;
    // An embedding needs its whole input in one ubatch, or llama.cpp asserts.
    if (params.embedding) params.n_batch = std::min(params.n_batch, params.n_ubatch);
    if (!options.chat_template.empty()) {
        params.chat_template = options.chat_template;
        if (!common_chat_verify_template(params.chat_template, params.use_jinja)) {
            invalid("chatTemplate is not a template that llama.cpp can use.");
        }
    }
    place(params, options, devices);

    // What common_params_parse() does after the flags.
    postprocess_cpu_params(params.cpuparams, nullptr);
    postprocess_cpu_params(params.cpuparams_batch, &params.cpuparams);
    postprocess_cpu_params(params.speculative.draft.cpuparams, &params.cpuparams);
    postprocess_cpu_params(params.speculative.draft.cpuparams_batch, &params.cpuparams_batch);
    if (params.escape) {
        for (auto & breaker : params.sampling.dry_sequence_breakers) string_process_escapes(breaker);
    }
    if (!params.kv_overrides.empty()) {
        params.kv_overrides.emplace_back();
        params.kv_overrides.back().key[0] = 0;
    }
    if (!params.tensor_buft_overrides.empty()) params.tensor_buft_overrides.push_back({nullptr, nullptr});
    auto & draft_overrides = params.speculative.draft.tensor_buft_overrides;
    if (!draft_overrides.empty()) draft_overrides.push_back({nullptr, nullptr});
    params.default_template_kwargs.emplace("preserve_reasoning", "true");
    if (params.model_alias.empty()) params.model_alias.insert(params.model.get_name());
    return params;
}

}  // namespace droid
