// The CPU backend of a prebuilt addon, of which there are several: the best one that this processor can run.

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "cpu/level.h"
#include "ggml-cpu.h"

#define LEVEL(prefix, name)                                                          \
    extern "C" {                                                                     \
    int prefix##score();                                                             \
    ggml_backend_reg_t prefix##ggml_backend_cpu_reg();                               \
    const ggml_type_traits_cpu * prefix##ggml_get_type_traits_cpu(ggml_type);        \
    ggml_status prefix##ggml_graph_compute(ggml_cgraph *, ggml_cplan *);             \
    ggml_cplan prefix##ggml_graph_plan(const ggml_cgraph *, int, ggml_threadpool *); \
    void prefix##ggml_threadpool_free(ggml_threadpool *);                            \
    ggml_threadpool * prefix##ggml_threadpool_new(ggml_threadpool_params *);         \
    }
#include "cpu_levels.inc"
#undef LEVEL

namespace droid {

namespace {

struct Level {
    const char * name;
    int (*score)();  // 0 when this processor lacks an instruction of it; more is better
    ggml_backend_reg_t (*reg)();
    const ggml_type_traits_cpu * (*type_traits)(ggml_type);
    ggml_status (*graph_compute)(ggml_cgraph *, ggml_cplan *);
    ggml_cplan (*graph_plan)(const ggml_cgraph *, int, ggml_threadpool *);
    void (*threadpool_free)(ggml_threadpool *);
    ggml_threadpool * (*threadpool_new)(ggml_threadpool_params *);
};

const Level levels[] = {
#define LEVEL(prefix, name)            \
    {name,                             \
     prefix##score,                    \
     prefix##ggml_backend_cpu_reg,     \
     prefix##ggml_get_type_traits_cpu, \
     prefix##ggml_graph_compute,       \
     prefix##ggml_graph_plan,          \
     prefix##ggml_threadpool_free,     \
     prefix##ggml_threadpool_new},
#include "cpu_levels.inc"
#undef LEVEL
};

const Level & choose() {
    const char * wanted = std::getenv("DROID_LLAMA_CPU_LEVEL");
    const Level * best = nullptr;
    int best_score = 0;
    std::string names;
    for (const Level & level : levels) {
        names += names.empty() ? level.name : std::string(", ") + level.name;
        const int score = level.score();
        if (score <= best_score || (wanted && *wanted && std::string(wanted) != level.name)) continue;
        best = &level;
        best_score = score;
    }
    if (best) return *best;
    throw std::runtime_error("This processor " +
                             (wanted && *wanted ? "cannot run the level DROID_LLAMA_CPU_LEVEL=" + std::string(wanted)
                                                : std::string("is older than this prebuilt addon supports")) +
                             "; it has the levels " + names);
}

const Level & chosen() {
    static const Level & level = choose();
    return level;
}

}  // namespace

const char * cpu_level() {
    return chosen().name;
}

}  // namespace droid

// What llama.cpp and the addon call. It cannot throw: the addon asked for cpu_level() before anything else.

ggml_backend_reg_t ggml_backend_cpu_reg(void) {
    return droid::chosen().reg();
}

const ggml_type_traits_cpu * ggml_get_type_traits_cpu(ggml_type type) {
    return droid::chosen().type_traits(type);
}

ggml_status ggml_graph_compute(ggml_cgraph * graph, ggml_cplan * plan) {
    return droid::chosen().graph_compute(graph, plan);
}

ggml_cplan ggml_graph_plan(const ggml_cgraph * graph, int n_threads, ggml_threadpool * pool) {
    return droid::chosen().graph_plan(graph, n_threads, pool);
}

void ggml_threadpool_free(ggml_threadpool * pool) {
    droid::chosen().threadpool_free(pool);
}

ggml_threadpool * ggml_threadpool_new(ggml_threadpool_params * params) {
    return droid::chosen().threadpool_new(params);
}
