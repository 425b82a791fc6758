#include <signal.h>
#include <sys/wait.h>

#include "op_graph.h"

using namespace droid::rpc;
using namespace droid::test;

namespace {

struct Progress {
    volatile int64_t current;
    volatile int64_t accepted[GGML_OP_COUNT];
    volatile int64_t computed[GGML_OP_COUNT];
    char text[1 << 14];
};

constexpr int max_failures = 12;

// Where a mistake has a result overlap a source, or two rows go to the same place, the threads race, and spoil nothing
// but what was spoilt.
#ifdef __SANITIZE_THREAD__
constexpr bool thread_sanitizer = true;
#else
constexpr bool thread_sanitizer = false;
#endif

// One case, all of it from its number.
void run_case(uint64_t number, Arena & arena, ggml_threadpool * pool, Progress & progress, bool verbose) {
    Random random{number * 0x2545f4914f6cdd1dull + 1};
    const std::vector<NodeKind> & kinds = node_kinds();
    const NodeKind & kind = kinds[number % kinds.size()];
    Graph graph = make_graph(kind, random);
    const int mutations = random.chance(12) ? 0 : static_cast<int>(random.in(1, random.chance(60) ? 2 : 5));
    for (int i = 0; i < mutations; i++) mutate(graph, random);
    Placed placed(std::move(graph), arena, random);
    if (!placed.valid()) return;
    if (verbose) std::printf("%s", placed.text().c_str());
    const std::string reason = placed.check();
    if (verbose) std::printf("%s\n", reason.empty() ? "accepted" : reason.c_str());
    if (mutations == 0 && !reason.empty()) {
        std::fprintf(stderr, "refused a good %s: %s\n%s", kind.name, reason.c_str(), placed.text().c_str());
        std::abort();
    }
    if (!reason.empty()) return;
    const ggml_op op = placed.node(placed.size() - 1).op;
    progress.accepted[op] = progress.accepted[op] + 1;
    if (!placed.indices(random)) return;
    std::snprintf(progress.text, sizeof(progress.text), "%s", placed.text().c_str());
    const bool racing = mutations > 0 || op == GGML_OP_SET_ROWS;
    const bool two = random.chance(50) && !(thread_sanitizer && racing);
    placed.compute(two ? 2 : 1, pool);
    progress.computed[op] = progress.computed[op] + 1;
}

// Runs cases [first, end) in a child; the one it died in, or -1.
int64_t run_batch(int64_t first, int64_t end, uint64_t seed, Progress & progress) {
    progress.current = first;
    std::fflush(stdout);
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        Arena arena;
        ggml_threadpool_params params = ggml_threadpool_params_default(2);
        params.poll = 0;
        ggml_threadpool * pool = ggml_threadpool_new(&params);
        for (int64_t i = first; i < end; i++) {
            progress.current = i;
            progress.text[0] = 0;
            alarm(30);
            run_case(seed + i, arena, pool, progress, false);
        }
        alarm(0);
        _exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return -1;
    std::printf("case %llu: %s %d\n%s\n", static_cast<unsigned long long>(seed + progress.current),
                WIFSIGNALED(status) ? "signal" : "exit", WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status),
                progress.text);
    return progress.current;
}

int64_t environment(const char * name, int64_t fallback) {
    const char * value = std::getenv(name);
    return value ? std::atoll(value) : fallback;
}

}  // namespace

// Nodes with a few mistakes each. Whatever the check accepts is computed, in memory with nothing around it: a kernel
// that asserts, does not end or touches what is not the node's ends the child. OP_CHECK_CASES for a longer run,
// OP_CHECK_SEED for another one, OP_CHECK_CASE to look at one.
TEST(op_check_lets_nothing_through_that_ends_the_process) {
    setenv("GGML_NO_BACKTRACE", "1", 1);
    void * shared = mmap(nullptr, sizeof(Progress), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    CHECK(shared != MAP_FAILED);
    Progress & progress = *static_cast<Progress *>(shared);
    if (const char * one = std::getenv("OP_CHECK_CASE")) {
        Arena arena;
        ggml_threadpool_params params = ggml_threadpool_params_default(2);
        run_case(std::strtoull(one, nullptr, 10), arena, ggml_threadpool_new(&params), progress, true);
        return;
    }
    const int64_t cases = environment("OP_CHECK_CASES", 6500);
    const uint64_t seed = environment("OP_CHECK_SEED", 0);
    int failures = 0;
    for (int64_t next = 0; next < cases && failures < max_failures;) {
        const int64_t end = std::min(cases, next + 2000);
        const int64_t died = run_batch(next, end, seed, progress);
        if (died >= 0) failures++;
        next = died >= 0 ? died + 1 : end;
    }
    int64_t accepted = 0, computed = 0;
    for (int op = 0; op < GGML_OP_COUNT; op++) {
        accepted += progress.accepted[op];
        computed += progress.computed[op];
        if (std::getenv("OP_CHECK_VERBOSE") && op_allowed(static_cast<ggml_op>(op))) {
            std::printf("%-20s accepted %8lld computed %8lld\n", ggml_op_name(static_cast<ggml_op>(op)),
                        static_cast<long long>(progress.accepted[op]), static_cast<long long>(progress.computed[op]));
        }
    }
    std::printf("%lld cases, %lld accepted, %lld computed\n", static_cast<long long>(cases),
                static_cast<long long>(accepted), static_cast<long long>(computed));
    CHECK_EQUAL(failures, 0);
    for (int op = 0; op < GGML_OP_COUNT; op++) {
        if (op_allowed(static_cast<ggml_op>(op)) && progress.computed[op] == 0) {
            throw Failure(std::string("never computed ") + ggml_op_name(static_cast<ggml_op>(op)));
        }
    }
}
