#include "upstream.h"

#include <algorithm>
#include <thread>

// Before the names below are changed.
#include "../src/llama-model-saver.h"
#include "common.h"
#include "ggml-cpp.h"
#include "llama-cpp.h"
#include "log.h"

namespace droid::archs {

static ggml_backend_dev_t the_device = nullptr;
static int gpu_layers = -1;

static size_t device_count() {
    return 1;
}

static ggml_backend_dev_t device(size_t) {
    return the_device;
}

// Upstream also splits every tensor among all devices that are not the CPU. Such a split of some layers only is nothing
// that llama.cpp is ready for: an architecture that uses a layer several times ends in an assertion.
static ggml_backend_buffer_type_t buffer_type(ggml_backend_dev_t device) {
    return gpu_layers < 0 ? ggml_backend_dev_buffer_type(device) : ggml_backend_cpu_buffer_type();
}

static llama_model_params model_params() {
    llama_model_params params = llama_model_default_params();
    params.n_gpu_layers = gpu_layers;
    return params;
}

// Upstream writes each model to a file, too, and reads it back: once is enough.
static bool saver_supports_arch(llm_arch arch) {
    return gpu_layers < 0 && llama_model_saver_supports_arch(arch);
}

// Upstream wants four threads, which wait for each other on a machine of two cores.
static llama_context * new_context(llama_model * model, llama_context_params params) {
    params.n_threads = params.n_threads_batch =
        std::min(params.n_threads, static_cast<int32_t>(std::thread::hardware_concurrency()));
    return llama_init_from_model(model, params);
}

static void no_init() {}

}  // namespace droid::archs

// It would take the log of llama.cpp to itself.
#define common_init droid::archs::no_init
#define ggml_backend_dev_count droid::archs::device_count
#define ggml_backend_dev_get droid::archs::device
#define ggml_backend_dev_buffer_type droid::archs::buffer_type
#define llama_model_default_params droid::archs::model_params
#define llama_model_saver_supports_arch droid::archs::saver_supports_arch
#define llama_init_from_model droid::archs::new_context
#define main upstream_main
#include "test-llama-archs.cpp"  // NOLINT: a program of its own
#undef main

namespace droid::archs {

void set_device(ggml_backend_dev_t device, int layers) {
    the_device = device;
    gpu_layers = layers;
}

std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const llm_arch & arch : llm_arch_all()) {
        if (arch != LLM_ARCH_UNKNOWN) all.push_back(llm_arch_name(arch));
    }
    return all;
}

int run(const std::string & arch, unsigned seed) {
    std::vector<std::string> words = {
        "archs", "-a", arch, "-s", std::to_string(seed), "-v", std::to_string(LOG_LEVEL_DEBUG)};
    std::vector<char *> args;
    for (std::string & word : words) args.push_back(word.data());
    return upstream_main(static_cast<int>(args.size()), args.data());
}

}  // namespace droid::archs
