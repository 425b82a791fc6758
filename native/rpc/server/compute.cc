#include "rpc/server/compute.h"

#include <algorithm>
#include <chrono>

#include "rpc/graph_work.h"
#include "rpc/server/refusal.h"

namespace droid::rpc {

namespace {

// Intermediate memory above this is not kept between graphs.
constexpr uint64_t work_to_keep = 64ull << 20;

// FLOP after which another client gets its turn: less than a second for any phone, and far more than one token takes.
constexpr double piece_work = 4e9;

// How often a running graph looks whether anybody still waits for it.
constexpr auto look_interval = std::chrono::milliseconds(20);

constexpr const char * stopping = "the worker is shutting down";

ggml_threadpool_t make_pool(int threads) {
    // Without a pool of its own ggml starts its threads anew for every graph.
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    // Between two graphs lies a wait for the network: spinning would only take the cores from others.
    params.poll = 0;
    return ggml_threadpool_new(&params);
}

}  // namespace

class Compute::Turn {
  public:
    explicit Turn(Compute & compute) : compute_(compute) {
        std::unique_lock<std::mutex> lock(compute.mutex_);
        wait(lock);
    }
    ~Turn() {
        std::lock_guard<std::mutex> lock(compute_.mutex_);
        if (mine_) pass();
    }

    // Lets those who wait go first.
    void yield() {
        std::unique_lock<std::mutex> lock(compute_.mutex_);
        if (compute_.tickets_ == compute_.served_ + 1) return;
        pass();
        wait(lock);
    }

  private:
    void wait(std::unique_lock<std::mutex> & lock) {
        const uint64_t ticket = compute_.tickets_++;
        compute_.next_.wait(lock, [&] { return compute_.served_ == ticket; });
        mine_ = true;
        if (!compute_.stopped_) return;
        pass();
        throw Refusal(stopping, NoticeReason::shutting_down);
    }

    void pass() {
        mine_ = false;
        compute_.served_++;
        compute_.next_.notify_all();
    }

    Compute & compute_;
    bool mine_ = false;
};

Compute::Compute(int threads, Budget & budget)
    : threads_(std::clamp(threads, 1, GGML_MAX_N_THREADS)), budget_(budget), pool_(make_pool(threads_)) {}

Compute::~Compute() {
    ggml_threadpool_free(pool_);
}

void Compute::stop() {
    stopped_ = true;
}

uint64_t Compute::run(Graph & graph, const std::function<bool()> & abandoned) {
    Turn turn(*this);
    std::chrono::steady_clock::duration spent{};
    bool first = true;
    for (const Graph::Segment & segment : graph.segments) {
        Graph::check(segment);
        const int end = segment.first + segment.count;
        Graph::Segment piece;
        for (int node = segment.first; node < end; node += piece.count) {
            if (!first) turn.yield();
            first = false;
            piece.first = node;
            piece.count = 0;
            for (double work = 0; node + piece.count < end && work < piece_work; piece.count++) {
                work += node_work(*graph.nodes[node + piece.count]);
            }
            const auto start = std::chrono::steady_clock::now();
            run_piece(graph, piece, abandoned);
            spent += std::chrono::steady_clock::now() - start;
        }
    }
    if (work_charge_.bytes() > work_to_keep) {
        work_.reset();
        work_charge_.clear();
    }
    return static_cast<uint64_t>(std::chrono::duration_cast<std::chrono::microseconds>(spent).count());
}

void Compute::run_piece(Graph & graph, const Graph::Segment & piece, const std::function<bool()> & abandoned) {
    ggml_cgraph view = graph.view(piece);
    ggml_cplan plan = ggml_graph_plan(&view, threads_, pool_);
    if (plan.work_size > work_charge_.bytes()) {
        work_.reset();
        work_charge_.clear();
        work_charge_ = Charge::take(budget_, plan.work_size);
        if (work_charge_.bytes()) work_ = allocate_aligned(plan.work_size);
        if (!work_) {
            work_charge_.clear();
            throw out_of_memory("a graph needs " + std::to_string(plan.work_size) + " bytes for intermediate results");
        }
    }
    plan.work_data = work_.get();

    struct Watch {
        const Compute & compute;
        const std::function<bool()> & abandoned;
        std::chrono::steady_clock::time_point next;
    } watch = {*this, abandoned, std::chrono::steady_clock::now() + look_interval};
    // After each node, on one of the threads.
    plan.abort_callback = [](void * data) {
        Watch & watch = *static_cast<Watch *>(data);
        if (watch.compute.stopped_) return true;
        const auto now = std::chrono::steady_clock::now();
        if (now < watch.next) return false;
        watch.next = now + look_interval;
        return watch.abandoned();
    };
    plan.abort_callback_data = &watch;
    const ggml_status status = ggml_graph_compute(&view, &plan);
    if (status == GGML_STATUS_ABORTED && stopped_) throw Refusal(stopping, NoticeReason::shutting_down);
    if (status == GGML_STATUS_ABORTED) throw Refusal("the client left while its graph was computed");
    if (status != GGML_STATUS_SUCCESS) throw Refusal("the graph could not be computed");
}

}  // namespace droid::rpc
