// Connections that somebody else made: a pair of sockets in place of a port, at both ends.

#include <sys/socket.h>

#include <atomic>
#include <cmath>
#include <functional>
#include <future>
#include <random>
#include <thread>

#include "layer.h"
#include "test_server.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

namespace {

// A server without a port.
struct Adopter : TestServer {
    explicit Adopter(ServerOptions options = small()) : TestServer(std::move(options), Port::none) {}
    void adopt(Pair & pair) { server.adopt(pair.theirs.release(), "pair"); }
};

CodedError error_of(const std::function<void()> & action) {
    try {
        action();
    } catch (const CodedError & error) {
        return error;
    }
    throw Failure("no error came");
}

FakeWorker::Script freeze_at(Command when) {
    return [when](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
        if (command == when) self.freeze();
        return command == when;
    };
}

bool hung_up(int fd) {
    char byte;
    return recv(fd, &byte, 1, 0) <= 0;
}

// Hands on what comes between two sockets, that of the first one slowly when asked to.
class SlowRelay {
  public:
    SlowRelay(OwnedSocket near, OwnedSocket far) : near_(std::move(near)), far_(std::move(far)) {
        up_ = std::thread([this] { carry(near_.get(), far_.get(), slow); });
        down_ = std::thread([this] { carry(far_.get(), near_.get(), never_); });
    }
    ~SlowRelay() {
        for (const OwnedSocket * socket : {&near_, &far_}) shutdown_socket(socket->get());
        up_.join();
        down_.join();
    }

    std::atomic<bool> slow{false};

  private:
    static void carry(int from, int to, const std::atomic<bool> & slow) {
        std::vector<char> bytes(40 * 1024);
        ssize_t n;
        while ((n = recv(from, bytes.data(), bytes.size(), 0)) > 0) {
            if (!send_all(to, bytes.data(), static_cast<size_t>(n))) break;
            if (slow) std::this_thread::sleep_for(std::chrono::milliseconds(500));
        }
        shutdown_socket(to);
    }

    const OwnedSocket near_, far_;
    const std::atomic<bool> never_{false};
    std::thread up_, down_;
};

}  // namespace

TEST(a_load_and_its_graphs_over_a_pair_of_sockets) {
    const int before = entries("/proc/self/fd");
    {
        Adopter server;
        CHECK_EQUAL(server.server.port(), 0u);
        Pair pair, other;
        server.adopt(pair);
        server.adopt(other);
        const auto worker = pair.connect();
        Layer layer(worker->device(), GGML_TYPE_F16), local(cpu_device(), GGML_TYPE_F16);
        worker->offer(layer.manifest());
        layer.load();
        layer.run(1);
        const auto second = other.connect();
        Layer same(second->device(), GGML_TYPE_F16);
        second->offer(same.manifest());
        same.load();
        local.load();
        for (unsigned step = 1; step < 4; step++) {
            const std::vector<float> expected = local.run(step);
            CHECK(layer.run(step) == expected);
            CHECK(same.run(step) == expected);
        }
        CHECK_EQUAL(worker->counters().weights_sent.load(), layer.weight_bytes());
        CHECK_EQUAL(second->counters().weights_reused.load(), layer.weight_bytes());
        CHECK_EQUAL(server.server.counters().graphs_computed.load(), 7u);
        // Far more than a socket holds, in both directions.
        Sum sum(worker->device(), 1 << 20);
        CHECK_EQUAL(sum.step(3, 1)[(1 << 20) - 1], 10.0f);
        CHECK(!worker->failure() && !second->failure());
    }
    CHECK(comes_back_to(before, "/proc/self/fd"));
}

TEST(a_socket_that_was_not_blocking_is_served) {
    Adopter server;
    Pair pair;
    set_nonblocking(pair.theirs.get());
    server.adopt(pair);
    const auto worker = pair.connect();
    Sum sum(worker->device(), 1 << 20);
    CHECK_EQUAL(sum.step(3, 1)[0], 10.0f);
}

TEST(a_worker_that_hangs_up_on_an_idle_pair_is_noticed) {
    for (const bool tells : {false, true}) {
        Pair pair;
        FakeWorker fake(std::move(pair.theirs), true,
                        [tells](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
                            if (command != Command::free_buffer) return false;
                            if (tells) self.notice(1, "idle too long");
                            self.hang_up();
                            return true;
                        });
        std::promise<std::string> code;
        const auto worker =
            pair.connect(usual_timeouts(), nullptr, [&](const CodedError & error) { code.set_value(error.code()); });
        { Sum sum(worker->device()); }
        auto lost = code.get_future();
        CHECK(lost.wait_for(std::chrono::seconds(2)) == std::future_status::ready);
        CHECK_EQUAL(lost.get(), std::string(tells ? "DROID_WORKER_REFUSED" : "DROID_WORKER_LOST"));
        CHECK(worker->failure().has_value());
    }
}

TEST(a_master_that_hangs_up_on_an_idle_pair_frees_what_it_had) {
    Adopter server;
    Pair pair;
    server.adopt(pair);
    auto worker = pair.connect();
    auto sum = std::make_unique<Sum>(worker->device());
    sum->step(1, 2);
    CHECK_EQUAL(server.server.counters().clients.load(), 1u);
    sum.reset();
    worker.reset();
    CHECK(eventually([&] { return server.server.counters().clients == 0u; }));
    CHECK(server.said("client pair disconnected"));
    CHECK_EQUAL(server.server.counters().bytes_allocated.load(), 0u);
}

TEST(deadlines_hold_over_a_pair) {
    const int before = entries("/proc/self/fd");
    for (const Command at : {Command::hello, Command::alloc_buffer, Command::read}) {
        Pair pair;
        FakeWorker fake(std::move(pair.theirs), true, freeze_at(at));
        const auto start = Clock::now();
        const CodedError error = error_of([&] {
            const auto worker = pair.connect(short_timeouts());
            Sum sum(worker->device());
            if (!sum.buffer) throw *worker->failure();
            sum.step(1, 2);
        });
        CHECK_EQUAL(error.code(), std::string("DROID_WORKER_LOST"));
        CHECK(ms_since(start) >= 300 && ms_since(start) < 3000);
    }
    {
        // One that does not even read.
        Pair pair;
        FakeWorker fake(std::move(pair.theirs), true, freeze_at(Command::graph_compute));
        const auto worker = pair.connect(short_timeouts());
        Sum sum(worker->device(), 1 << 20);
        ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
        const auto start = Clock::now();
        CHECK_EQUAL(error_of([&] { sum.step(1, 2); }).code(), std::string("DROID_WORKER_LOST"));
        CHECK(ms_since(start) < 5000);
    }
    CHECK(comes_back_to(before, "/proc/self/fd"));
}

#ifdef __linux__
// As long as a relay takes some of what was sent, there is no use in an answer yet.
TEST(a_peer_that_reads_slowly_is_not_a_silent_one) {
    Adopter server;
    Pair pair, far;
    server.adopt(far);
    SlowRelay relay(std::move(pair.theirs), std::move(far.ours));
    WorkerTimeouts timeouts = usual_timeouts();
    timeouts.answer_ms = 1200;
    const auto worker = pair.connect(timeouts);
    Sum sum(worker->device(), 128 * 1024 / sizeof(float));
    sum.step(1, 2);
    std::mt19937 random(1);
    std::vector<float> noise(static_cast<size_t>(sum.a->ne[0]));  // which cannot be packed
    for (float & value : noise) value = std::uniform_real_distribution<float>()(random);
    relay.slow = true;
    const auto start = Clock::now();
    for (ggml_tensor * input : {sum.a, sum.b}) ggml_backend_tensor_set(input, noise.data(), 0, ggml_nbytes(input));
    ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
    float first = 0;
    ggml_backend_tensor_get(sum.out, &first, 0, sizeof first);
    CHECK(std::fabs(first - (noise[0] * noise[0] + noise[0])) < 1e-6f);
    relay.slow = false;
    CHECK(ms_since(start) > timeouts.answer_ms);
    CHECK(!worker->failure());
}
#endif

TEST(interrupts_end_waits_for_a_pair) {
    for (const Command at : {Command::hello, Command::read}) {
        Pair pair;
        FakeWorker fake(std::move(pair.theirs), true, freeze_at(at));
        const auto interrupt = std::make_shared<Interrupt>();
        std::thread trip([&] {
            std::this_thread::sleep_for(std::chrono::milliseconds(50));
            interrupt->trip();
        });
        const auto start = Clock::now();
        const CodedError error = error_of([&] {
            const auto worker = pair.connect(usual_timeouts(), interrupt);
            Sum(worker->device()).step(1, 2);
        });
        trip.join();
        CHECK_EQUAL(error.code(), std::string("DROID_CLOSED"));
        CHECK(ms_since(start) < 2000);
    }
}

TEST(adopted_masters_count_like_those_of_the_port) {
    ServerOptions options = small();
    options.max_clients = 1;
    Adopter server(options);
    const ServerCounters & counters = server.server.counters();
    Pair pair, other;
    server.adopt(pair);
    server.adopt(other);
    auto first = pair.connect();
    CHECK_EQUAL(error_of([&] { other.connect(); }).code(), std::string("DROID_WORKER_BUSY"));
    CHECK(eventually([&] { return counters.clients_refused == 1u; }));

    // Those that say nothing are not kept without bound.
    std::vector<Pair> silent(40);
    for (Pair & one : silent) server.adopt(one);
    CHECK(counters.clients_refused > 1u);
    CHECK(server.said("client pair turned away: too many connections"));
    CHECK(hung_up(silent.back().ours.get()));
    silent.clear();
    first.reset();
    Pair later;
    CHECK(eventually([&] {
        Pair another;
        server.adopt(another);
        try {
            another.connect();
            return true;
        } catch (const CodedError &) {
            return false;
        }
    }));
}

TEST(a_master_that_says_nothing_over_a_pair_is_turned_away) {
    ServerOptions options = small();
    options.handshake_timeout_ms = 100;
    Adopter server(options);
    Pair pair;
    server.adopt(pair);
    CHECK(hung_up(pair.ours.get()));
    CHECK(server.said("it did not say HELLO in time"));
    CHECK_EQUAL(server.server.counters().clients_refused.load(), 1u);
}

TEST(a_server_with_adopted_masters_stops_and_takes_no_more) {
    const int before = entries("/proc/self/fd");
    {
        Adopter server;
        Pair idle, unspoken, late;
        server.adopt(idle);
        server.adopt(unspoken);
        std::promise<CodedError> told;
        const auto worker =
            idle.connect(usual_timeouts(), nullptr, [&](const CodedError & error) { told.set_value(error); });
        Sum sum(worker->device());
        sum.step(1, 2);
        const auto start = Clock::now();
        server.server.stop();
        CHECK(ms_since(start) < 2000);
        auto lost = told.get_future();
        CHECK(lost.wait_for(std::chrono::seconds(2)) == std::future_status::ready);
        CHECK(std::string(lost.get().what()).find("shutting down") != std::string::npos);
        CHECK(hung_up(unspoken.ours.get()));

        const uint64_t refused = server.server.counters().clients_refused;
        server.adopt(late);
        CHECK(hung_up(late.ours.get()));
        CHECK_EQUAL(server.server.counters().clients_refused.load(), refused + 1);
        CHECK(server.said("client pair turned away: the worker is shutting down"));
    }
    CHECK(comes_back_to(before, "/proc/self/fd"));
}

TEST(adopting_while_the_server_stops_leaves_nothing_behind) {
    const int before = entries("/proc/self/fd");
    for (int round = 0; round < 20; round++) {
        Adopter server;
        std::vector<Pair> pairs(16);
        std::thread stopper([&] { server.server.stop(); });
        for (Pair & pair : pairs) server.adopt(pair);
        stopper.join();
        for (Pair & pair : pairs) CHECK(hung_up(pair.ours.get()));
    }
    CHECK(comes_back_to(before, "/proc/self/fd"));
}

TEST(a_server_may_have_a_port_and_adopt_as_well) {
    TestServer server(small());
    Pair pair;
    server.server.adopt(pair.theirs.release(), "pair");
    const auto adopted = pair.connect(), dialled = connect(server.server.port());
    Sum one(adopted->device()), other(dialled->device());
    CHECK_EQUAL(one.step(3, 1)[0], 10.0f);
    CHECK_EQUAL(other.step(3, 2)[0], 11.0f);
    CHECK_EQUAL(server.server.counters().clients.load(), 2u);
}

TEST(a_socket_goes_with_its_address) {
    const int before = entries("/proc/self/fd");
    {
        Pair pair;
        const WorkerAddress unused(std::move(pair.ours));
        CHECK(unused.socket && !pair.ours);
    }
    {
        // Closed by the peer before anything was said.
        Pair pair;
        pair.theirs = OwnedSocket();
        CHECK_EQUAL(error_of([&] { pair.connect(); }).code(), std::string("DROID_WORKER_LOST"));
    }
    CHECK(comes_back_to(before, "/proc/self/fd"));
}
