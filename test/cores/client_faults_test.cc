#include <sys/socket.h>

#include <limits>
#include <set>

#include "client_rig.h"

using namespace droid;
using namespace droid::rpc;
using namespace droid::test;

namespace {

// Everything a master does with a worker, in short; throws what it throws, also where C swallowed it.
void use(Worker & worker) {
    Sum sum(worker.device());
    if (!sum.buffer) {
        if (worker.failure()) throw *worker.failure();
        throw *worker.allocation_failure();
    }
    Manifest manifest;
    manifest.entries["x"] = {Sha256{1}, 256};
    worker.offer(manifest);
    for (int i = 0; i < 3; i++) sum.step(1, 2);
    std::vector<float> out(64);
    ggml_backend_tensor_copy(sum.a, sum.b);
    ggml_backend_tensor_get_async(sum.backend.get(), sum.a, out.data(), 0, 256);
    ggml_backend_synchronize(sum.backend.get());
    if (worker.failure()) throw *worker.failure();
}

int commands_of_use(bool extended) {
    FakeWorker fake(extended);
    use(*connect(fake.port));
    return static_cast<int>(fake.log().size());
}

struct Outcome {
    std::string code, message;
    int64_t ms;
};

// Connects, uses, fails; then everything fails at once and frees at once, and nothing stays behind.
Outcome fail_with(bool extended, const FakeWorker::Script & script, const std::function<void(Worker &)> & work = use,
                  const WorkerTimeouts & timeouts = usual_timeouts()) {
    const int fds = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    Outcome outcome = {"none", "", 0};
    {
        FakeWorker fake(extended, script);
        const auto start = Clock::now();
        std::unique_ptr<Worker> worker;
        int lost = 0;
        try {
            worker = connect(fake.port, timeouts, nullptr, [&](const CodedError &) { lost++; });
            work(*worker);
        } catch (const CodedError & error) {
            outcome = {error.code(), error.what(), 0};
        }
        outcome.ms = ms_since(start);
        if (worker && worker->failure()) {
            CHECK_EQUAL(std::string(worker->failure()->code()), outcome.code);
            CHECK_EQUAL(lost, 1);
            const auto again = Clock::now();
            const uint64_t waits = worker->counters().waits, writes = worker->counters().writes;
            try {
                Sum sum(worker->device());
                CHECK(!sum.buffer);
                ggml_backend_synchronize(sum.backend.get());
                CHECK(!"synchronize returned");
            } catch (const CodedError & error) {
                CHECK_EQUAL(std::string(error.what()), outcome.message);
            }
            CHECK_EQUAL(worker->counters().waits.load(), waits);
            CHECK_EQUAL(worker->counters().writes.load(), writes);
            worker.reset();
            CHECK(ms_since(again) < 2000);  // a busy machine; what it must not do is wait
        }
    }
    CHECK(comes_back_to(fds, "/proc/self/fd"));
    CHECK(comes_back_to(threads, "/proc/self/task"));
    return outcome;
}

#define CHECK_OUTCOME(outcome, expected)                                                                       \
    do {                                                                                                       \
        const Outcome & o = (outcome);                                                                         \
        if (o.code != (expected)) throw Failure(std::string(expected) + ", got " + o.code + ": " + o.message); \
    } while (0)

template <typename T>
FakeWorker::Script lie(Command about, const T & value) {
    return [about, value](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
        if (command != about) return false;
        self.answer(value);
        return true;
    };
}

std::string code_of(const std::function<void()> & action) {
    try {
        action();
    } catch (const CodedError & error) {
        return error.code();
    }
    return "none";
}

HelloAnswer hello(uint8_t major, uint8_t minor, uint8_t status, bool extended = true) {
    HelloAnswer answer = {major, minor, 0, 0, {}};
    if (extended) std::memcpy(answer.capabilities.magic, extension_magic, sizeof extension_magic);
    answer.capabilities.version = extension_version;
    answer.capabilities.status = status;
    return answer;
}

}  // namespace

TEST(a_worker_that_hangs_up_at_any_point) {
    for (const bool extended : {false, true}) {
        const int count = commands_of_use(extended);
        CHECK(count > 15);
        // All but those after which nobody looks any more.
        for (int point = 0; point < count - 2; point++) {
            const Outcome outcome =
                fail_with(extended, [point](FakeWorker & self, Command, const FakeWorker::Bytes &, int index) {
                    if (index == point) self.hang_up();
                    return index == point;
                });
            CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
            CHECK(outcome.message.find("no answer") == std::string::npos);
            CHECK(outcome.message.find("127.0.0.1:") != std::string::npos);
            CHECK(outcome.message.find("(DROID_WORKER_LOST)") != std::string::npos);
        }
    }
}

TEST(a_worker_that_freezes_at_any_point) {
    for (const bool extended : {false, true}) {
        const int count = commands_of_use(extended);
        for (int point = 0; point < count - 2; point++) {
            const Outcome outcome = fail_with(
                extended,
                [point](FakeWorker & self, Command, const FakeWorker::Bytes &, int index) {
                    if (index == point) self.freeze();
                    return index == point;
                },
                use, short_timeouts());
            CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
            CHECK(outcome.ms >= 250 && outcome.ms < 5000);
            CHECK(outcome.message.find("no answer within") != std::string::npos);
        }
    }
}

TEST(an_answer_that_breaks_off) {
    for (const bool extended : {false, true}) {
        const int count = commands_of_use(extended);
        for (int point = 0; point < count; point++) {
            bool struck = false;
            const Outcome outcome = fail_with(
                extended, [&](FakeWorker & self, Command command, const FakeWorker::Bytes & payload, int index) {
                    if (index != point || !self.answers(command)) return false;
                    const auto body = self.honest(command, payload);
                    const uint64_t size = body.size();
                    self.raw(&size, sizeof size);
                    self.raw(body.data(), body.size() - 1);
                    self.hang_up();
                    return struck = true;
                });
            if (struck) CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
        }
    }
}

TEST(answers_in_single_bytes_are_answers) {
    FakeWorker fake(true, [](FakeWorker & self, Command, const FakeWorker::Bytes &, int) {
        self.reply_in_pieces(1, {});
        return false;
    });
    use(*connect(fake.port));
}

TEST(dribbling_does_not_extend_a_deadline) {
    const Outcome outcome = fail_with(
        true,
        [](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
            if (command == Command::read) self.reply_in_pieces(1, std::chrono::milliseconds(40));
            return false;
        },
        use, short_timeouts());
    CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
    CHECK(outcome.ms < 5000);
}

TEST(lies) {
    const char * protocol = "DROID_WORKER_PROTOCOL";
    const char * version = "DROID_VERSION_MISMATCH";
    CHECK_OUTCOME(fail_with(false, lie(Command::hello, hello(6, 0, 0, false))), version);
    CHECK_OUTCOME(fail_with(false, lie(Command::hello, hello(7, 1, 0, false))), version);
    CHECK_OUTCOME(fail_with(true, lie(Command::hello, hello(7, 0, 77))), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::hello, uint32_t{7})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::device_count, uint32_t{0})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::device_count, uint64_t{1})), protocol);
    for (const uint64_t alignment : {0ull, 3ull, 8192ull, ~0ull}) {
        CHECK_OUTCOME(fail_with(false, lie(Command::get_alignment, alignment)), protocol);
    }
    CHECK_OUTCOME(fail_with(false, lie(Command::get_max_size, uint64_t{0})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::get_device_memory, DeviceMemoryAnswer{2, 1})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::get_device_memory, DeviceMemoryAnswer{1, ~0ull})), protocol);
    for (const uint64_t base : {0ull, 33ull, ~31ull}) {
        CHECK_OUTCOME(fail_with(false, lie(Command::buffer_get_base, base)), protocol);
    }
    CHECK_OUTCOME(fail_with(false, lie(Command::alloc_buffer, AllocBufferAnswer{1, 1})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::alloc_buffer, AllocBufferAnswer{1, ~0ull})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::copy_tensor, uint8_t{2})), protocol);
    CHECK_OUTCOME(fail_with(true, lie(Command::offer, uint8_t{2})), protocol);
    CHECK_OUTCOME(fail_with(true, lie(Command::offer, uint16_t{1})), protocol);
    CHECK_OUTCOME(fail_with(false, lie(Command::get_tensor, uint8_t{0})), protocol);
    CHECK_OUTCOME(fail_with(true, lie(Command::read, uint8_t{0})), protocol);
    CHECK_OUTCOME(fail_with(false,
                            [](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
                                if (command != Command::get_tensor) return false;
                                const uint64_t huge = 1ull << 60;
                                self.raw(&huge, sizeof huge);
                                return true;
                            }),
                  protocol);
    // What nobody asked for.
    CHECK_OUTCOME(fail_with(true,
                            [](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
                                if (command != Command::read) return false;
                                const uint64_t answer[34] = {264};
                                self.raw(answer, 33 * 8 + 8);
                                self.raw(answer, 8);
                                return true;
                            }),
                  protocol);
}

TEST(lies_about_halves) {
    for (const int32_t exponent : {-1, 113, INT32_MAX}) {
        struct Answer {
            HalfAnswer head;
            ggml_fp16_t halves[64];
        };
        FakeWorker fake(true, lie(Command::read_half, Answer{{1, exponent}, {}}), 1);
        const auto worker = connect(fake.port);
        worker->use_half();
        Sum sum(worker->device());
        CHECK_EQUAL(code_of([&] { sum.step(1, 2); }), std::string("DROID_WORKER_PROTOCOL"));
        CHECK(worker->failure());
    }
    FakeWorker fake(true, lie(Command::read_half, HalfAnswer{1, 0}), 1);  // and nothing behind it
    const auto worker = connect(fake.port);
    worker->use_half();
    Sum sum(worker->device());
    CHECK_EQUAL(code_of([&] { sum.step(1, 2); }), std::string("DROID_WORKER_PROTOCOL"));
}

TEST(halves_are_refused_where_nobody_knows_them) {
    for (const bool extended : {false, true}) {
        FakeWorker fake(extended);
        const auto worker = connect(fake.port);
        try {
            worker->use_half();
            CHECK(!"it was taken");
        } catch (const CodedError & error) {
            CHECK_EQUAL(std::string(error.code()), std::string("DROID_INVALID_ARGUMENT"));
            CHECK(std::string(error.what()).find(worker->endpoint()) != std::string::npos);
        }
        CHECK(!worker->failure());
        Sum(worker->device()).step(1, 2);
    }
}

TEST(lies_about_a_tensors_size) {
    for (const uint64_t size : {0ull, 1ull, 1ull << 60, ~0ull}) {
        const Outcome outcome = fail_with(false, lie(Command::get_alloc_size, size), [](Worker & worker) {
            const ggml_context_ptr context(ggml_init({4096, nullptr, true}));
            ggml_tensor * tensor = ggml_new_tensor_2d(context.get(), GGML_TYPE_Q8_0, 32, 4);
            const ggml_backend_buffer_ptr buffer(
                ggml_backend_alloc_ctx_tensors_from_buft(context.get(), ggml_backend_dev_buffer_type(worker.device())));
            CHECK(!buffer);
            CHECK(tensor);
            throw *worker.failure();
        });
        CHECK_OUTCOME(outcome, "DROID_WORKER_PROTOCOL");
    }
}

TEST(too_little_memory_is_not_a_failure_of_the_connection) {
    FakeWorker fake(true, lie(Command::alloc_buffer, AllocBufferAnswer{0, 0}));
    const auto worker = connect(fake.port);
    Sum sum(worker->device());
    CHECK(!sum.buffer);
    CHECK(!worker->failure());
    CHECK_EQUAL(std::string(worker->allocation_failure()->code()), "DROID_WORKER_OUT_OF_MEMORY");
}

TEST(a_worker_that_is_busy_or_leaves) {
    CHECK_OUTCOME(fail_with(true, lie(Command::hello, hello(7, 0, 1))), "DROID_WORKER_BUSY");
    CHECK_OUTCOME(fail_with(true, lie(Command::hello, hello(7, 0, 2))), "DROID_WORKER_LOST");
}

TEST(notices) {
    const struct {
        uint32_t reason;
        std::string text, code, said;
    } cases[] = {
        {1, "bad stride", "DROID_WORKER_REFUSED", "bad stride"},
        {1, std::string("a\0b\x1b[31m\xff", 9), "DROID_WORKER_REFUSED", "a?b?[31m?"},
        {2, "no room", "DROID_WORKER_OUT_OF_MEMORY", "no room"},
        {3, "", "DROID_WORKER_LOST", "shutting down"},
        {9, "?", "DROID_WORKER_PROTOCOL", "unknown reason"},
        {1, std::string(2000, 'x'), "DROID_WORKER_PROTOCOL", "too long"},
    };
    for (const auto & one : cases) {
        for (const Command when : {Command::hello, Command::write, Command::read, Command::graph_compute}) {
            const Outcome outcome =
                fail_with(true, [&](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
                    if (command != when) return false;
                    self.notice(one.reason, one.text);
                    self.hang_up();
                    return true;
                });
            CHECK_OUTCOME(outcome, one.code);
            CHECK(outcome.message.find(one.said) != std::string::npos);
        }
    }
}

TEST(a_worker_that_leaves_while_idle_is_noticed) {
    for (const bool tells : {false, true}) {
        FakeWorker fake(true, [tells](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
            if (command != Command::free_buffer) return false;
            if (tells) self.notice(1, "idle too long");
            self.hang_up();
            return true;
        });
        std::mutex mutex;
        std::condition_variable changed;
        std::string code;
        const auto worker = connect(fake.port, usual_timeouts(), nullptr, [&](const CodedError & error) {
            const std::lock_guard<std::mutex> lock(mutex);
            code = error.code();
            changed.notify_all();
        });
        { Sum sum(worker->device()); }
        std::unique_lock<std::mutex> lock(mutex);
        CHECK(changed.wait_for(lock, std::chrono::seconds(2), [&] { return !code.empty(); }));
        CHECK_EQUAL(code, std::string(tells ? "DROID_WORKER_REFUSED" : "DROID_WORKER_LOST"));
        CHECK(worker->failure().has_value());
    }
}

TEST(data_of_a_failed_read_is_never_taken_for_an_answer) {
    // Two reads in flight; the first answer comes, the second breaks off.
    int reads = 0;
    const Outcome outcome = fail_with(
        true,
        [&](FakeWorker & self, Command command, const FakeWorker::Bytes & payload, int) {
            if (command != Command::read || ++reads < 2) return false;
            const auto body = self.honest(command, payload);
            const uint64_t size = body.size();
            self.raw(&size, sizeof size);
            self.raw(body.data(), 100);
            self.hang_up();
            return true;
        },
        [](Worker & worker) {
            Sum sum(worker.device());
            std::vector<float> a(64), b(64);
            ggml_backend_tensor_get_async(sum.backend.get(), sum.a, a.data(), 0, 256);
            ggml_backend_tensor_get_async(sum.backend.get(), sum.b, b.data(), 0, 256);
            ggml_backend_synchronize(sum.backend.get());
            CHECK(!"synchronize returned");
        });
    CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
}

namespace {

// Trips after a while; the time it took whoever waits to come back with DROID_CLOSED.
template <typename Work>
void check_interrupted(const std::shared_ptr<Interrupt> & interrupt, const Work & work) {
    std::atomic<int64_t> tripped{0};
    const auto now = [] {
        return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
    };
    std::thread trip([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
        tripped = now();
        interrupt->trip();
    });
    std::string code = "none";
    try {
        work();
    } catch (const CodedError & error) {
        code = error.code();
    }
    const int64_t end = now();
    trip.join();
    CHECK_EQUAL(code, std::string("DROID_CLOSED"));
    CHECK(tripped > 0 && end - tripped < 2000);
}

FakeWorker::Script freeze_at(Command when) {
    return [when](FakeWorker & self, Command command, const FakeWorker::Bytes &, int) {
        if (command == when) self.freeze();
        return command == when;
    };
}

}  // namespace

TEST(interrupts) {
    {
        // A listener whose queue is full drops what else comes.
        const auto [listener, port] = listen_tcp("127.0.0.1", 0);
        listen(listener, 0);
        std::vector<int> queue;
        for (int i = 0; i < 4; i++) {
            try {
                queue.push_back(connect_tcp("x", "127.0.0.1", port, 100));
            } catch (const CodedError & error) {
                CHECK_EQUAL(error.code(), std::string("DROID_ENDPOINT_TIMEOUT"));
            }
        }
        const auto interrupt = std::make_shared<Interrupt>();
        const uint16_t full = port;
        check_interrupted(interrupt, [&] { connect(full, usual_timeouts(), interrupt); });
        for (const int fd : queue) close_socket(fd);
        close_socket(listener);
    }
    {
        FakeWorker fake(true, freeze_at(Command::hello));
        const auto interrupt = std::make_shared<Interrupt>();
        check_interrupted(interrupt, [&] { connect(fake.port, usual_timeouts(), interrupt); });
    }
    {
        FakeWorker fake(true, freeze_at(Command::read));
        const auto interrupt = std::make_shared<Interrupt>();
        bool lost = false;
        const auto worker = connect(fake.port, usual_timeouts(), interrupt, [&](const CodedError &) { lost = true; });
        Sum sum(worker->device());
        check_interrupted(interrupt, [&] { sum.step(1, 2); });
        CHECK(!lost);
    }
    {
        FakeWorker fake(true, freeze_at(Command::graph_compute));
        const auto interrupt = std::make_shared<Interrupt>();
        const auto worker = connect(fake.port, usual_timeouts(), interrupt);
        Sum sum(worker->device(), 8 << 20);
        ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
        check_interrupted(interrupt, [&] { sum.step(1, 2); });
    }
}

TEST(sending_to_a_worker_that_does_not_read) {
    const Outcome outcome = fail_with(
        true, freeze_at(Command::graph_compute),
        [](Worker & worker) {
            Sum sum(worker.device(), 8 << 20);
            ggml_backend_graph_compute_async(sum.backend.get(), sum.graph);
            sum.step(1, 2);
        },
        short_timeouts());
    CHECK_OUTCOME(outcome, "DROID_WORKER_LOST");
    CHECK(outcome.ms < 5000);
}

TEST(connecting_to_nothing) {
    const auto [listener, port] = listen_tcp("127.0.0.1", 0);
    close_socket(listener);
    std::string code;
    try {
        connect(port);
    } catch (const CodedError & error) {
        code = error.code();
    }
    CHECK_EQUAL(code, std::string("DROID_ENDPOINT_REFUSED"));
    try {
        Worker("x", {"no.such.host.invalid", port}, short_timeouts(), nullptr);
    } catch (const CodedError & error) {
        code = error.code();
    }
    CHECK(code == "DROID_ENDPOINT_UNREACHABLE" || code == "DROID_ENDPOINT_TIMEOUT");
}

TEST(names_are_resolved) {
    FakeWorker fake(true);
    const Worker worker("localhost", {"localhost", fake.port}, usual_timeouts(), nullptr);
    CHECK(worker.extended());
}
