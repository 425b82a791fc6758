#include <dirent.h>

#include <thread>

#include "errors.h"
#include "raw_client.h"
#include "test_server.h"

using namespace droid::test;

namespace {

size_t entries(const char * directory) {
    size_t count = 0;
    DIR * dir = opendir(directory);
    if (!dir) return 0;
    while (readdir(dir)) count++;
    closedir(dir);
    return count;
}

Tensor vector_at(const RawClient::Allocation & in, uint64_t offset, uint32_t elements) {
    Tensor tensor = {};
    tensor.id = 1;
    tensor.type = GGML_TYPE_F32;
    tensor.buffer = in.buffer;
    for (int i = 0; i < GGML_MAX_DIMS; i++) tensor.ne[i] = 1, tensor.nb[i] = elements * 4;
    tensor.ne[0] = elements;
    tensor.nb[0] = 4;
    tensor.data = in.base + offset;
    return tensor;
}

}  // namespace

TEST(answers_what_masters_ask_before_they_load) {
    TestServer server(small());
    RawClient client(server.server.port());
    CHECK(client.hello(false));
    CHECK_EQUAL(+client.greeting.major, 7);
    CHECK_EQUAL(client.greeting.capabilities.magic[0], 0);
    CHECK_EQUAL(client.ask<uint32_t>(Command::device_count, {}), 1u);
    CHECK_EQUAL(client.ask<uint64_t>(Command::get_alignment, bytes_of(DeviceRequest{0})) % 32, 0u);
    CHECK_EQUAL(client.ask<uint64_t>(Command::get_max_size, bytes_of(DeviceRequest{0})), 64u << 20);
    const auto memory = client.ask<DeviceMemoryAnswer>(Command::get_device_memory, bytes_of(DeviceRequest{0}));
    CHECK_EQUAL(memory.free, 64u << 20);
    CHECK_EQUAL(memory.total, 64u << 20);
    GetAllocSizeRequest request = {};
    request.tensor = vector_at({}, 0, 100);
    CHECK_EQUAL(client.ask<uint64_t>(Command::get_alloc_size, bytes_of(request)), 400u);
}

TEST(agrees_on_the_extension_only_with_its_own_kind) {
    TestServer server(small());
    RawClient ours(server.server.port());
    CHECK(ours.hello());
    CHECK(!std::memcmp(ours.greeting.capabilities.magic, extension_magic, 4));
    CHECK_EQUAL(ours.greeting.capabilities.rdma_queue_pair, 0u);

    RawClient upstream(server.server.port());
    CHECK(upstream.hello(false));
    upstream.send(Command::read, bytes_of(ReadRequest{1, 0, 0}));
    CHECK(upstream.hung_up());
    CHECK(server.said("the command is not known"));
}

TEST(stores_and_returns_data) {
    TestServer server(small());
    RawClient client(server.server.port());
    CHECK(client.hello());
    const auto a = client.allocate(4096), b = client.allocate(4096);
    CHECK(a.base != 0 && b.base != 0 && a.base % 64 == 0);
    CHECK_EQUAL(server.server.counters().bytes_allocated, 8192u);
    CHECK(client.read(a, 0, 4096) == Bytes(4096));

    const std::vector<float> values = {1, 2, 3, 4};
    Bytes set = bytes_of(SetTensorHeader{vector_at(a, 64, 4), 0, 4});
    append(set, values.data(), 12);
    client.send(Command::set_tensor, set);
    client.send(Command::get_tensor, bytes_of(GetTensorRequest{vector_at(a, 64, 4), 0, 16}));
    const Bytes got = client.answer();
    CHECK(got.size() == 16 && !std::memcmp(got.data() + 4, values.data(), 12));

    client.write(a, 0, values.data(), 16);
    CHECK_EQUAL(
        client.ask<uint8_t>(Command::copy_tensor, bytes_of(CopyTensorRequest{vector_at(a, 0, 4), vector_at(b, 32, 4)})),
        1);
    CHECK(!std::memcmp(client.read(b, 32, 16).data(), values.data(), 16));
    client.send(Command::memset_tensor, bytes_of(MemsetTensorRequest{vector_at(b, 32, 4), 4, 8, 0xab}));
    const Bytes set_bytes = client.read(b, 32, 16);
    CHECK(set_bytes[3] == 0 || set_bytes[3] != 0xab);
    CHECK(set_bytes[4] == 0xab && set_bytes[11] == 0xab && set_bytes[12] != 0xab);
    client.send(Command::buffer_clear, bytes_of(BufferClearRequest{b.buffer, 7}));
    CHECK(client.read(b, 0, 4096) == Bytes(4096, 7));
    client.send(Command::buffer_clear, bytes_of(BufferClearRequest{b.buffer, 0}));
    CHECK(client.read(b, 0, 4096) == Bytes(4096));
    client.send(Command::init_tensor, bytes_of(vector_at(b, 0, 4)));
    client.send(Command::free_buffer, bytes_of(BufferRequest{a.buffer}));
    client.send(Command::free_buffer, bytes_of(BufferRequest{b.buffer}));
    CHECK_EQUAL(client.ask<uint32_t>(Command::device_count, {}), 1u);
    CHECK_EQUAL(server.server.counters().bytes_allocated, 0u);
}

TEST(refuses_what_is_outside_of_buffers) {
    TestServer server(small());
    const uint64_t huge = ~0ull;
    refuses(server, "outside", [&](RawClient & c) { c.write(c.allocate(64), 60, "12345678", 8); });
    refuses(server, "outside", [&](RawClient & c) { c.write(c.allocate(64), huge, "12345678", 8); });
    const auto read = [](uint64_t offset, uint64_t size) {
        return [=](RawClient & c) {
            c.send(Command::read, bytes_of(ReadRequest{c.allocate(64).buffer, offset, size}));
        };
    };
    refuses(server, "outside", read(0, 65));
    refuses(server, "outside", read(64, 1));
    refuses(server, "outside", read(huge, 2));
    refuses(server, "outside", read(2, huge));
    refuses(server, "no buffer", [&](RawClient & c) { c.send(Command::read, bytes_of(ReadRequest{77, 0, 1})); });
    refuses(server, "no buffer", [&](RawClient & c) {
        const auto a = c.allocate(64);
        c.send(Command::free_buffer, bytes_of(BufferRequest{a.buffer}));
        c.send(Command::read, bytes_of(ReadRequest{a.buffer, 0, 1}));
    });
    refuses(server, "no buffer", [&](RawClient & c) { c.send(Command::free_buffer, bytes_of(BufferRequest{0})); });
    const auto get = [](const std::function<void(GetTensorRequest &)> & change) {
        return [=](RawClient & c) {
            GetTensorRequest request = {vector_at(c.allocate(64), 0, 4), 0, 16};
            change(request);
            c.send(Command::get_tensor, bytes_of(request));
        };
    };
    refuses(server, "outside", get([](auto & r) { r.size = 17; }));
    refuses(server, "outside", get([](auto & r) { r.offset = ~0ull; }));
    refuses(server, "outside", get([](auto & r) { r.tensor.data += 52; }));
    refuses(server, "outside", get([](auto & r) { r.tensor.data = 0; }));
    refuses(server, "not aligned", get([](auto & r) { r.tensor.data += 1; }));
    refuses(server, "does not exist", get([](auto & r) { r.tensor.type = GGML_TYPE_COUNT; }));
    refuses(server, "does not exist", get([](auto & r) { r.tensor.type = 4; }));
    refuses(server, "does not exist", get([](auto & r) { r.tensor.op = GGML_OP_COUNT; }));
    refuses(server, "half a block", get([](auto & r) { r.tensor.type = GGML_TYPE_Q4_0; }));
    refuses(server, "too large", get([](auto & r) {
                for (uint32_t & ne : r.tensor.ne) ne = UINT32_MAX;
                for (uint32_t & nb : r.tensor.nb) nb = UINT32_MAX - 3;
            }));
    refuses(server, "outside", get([](auto & r) { r.tensor.ne[1] = 2, r.tensor.nb[1] = 1u << 31; }));
    refuses(server, "stride", get([](auto & r) { r.tensor.ne[1] = 2, r.tensor.nb[1] = 0; }));
    refuses(server, "stride", get([](auto & r) { r.tensor.nb[0] = 2; }));
    refuses(server, "outside", [](RawClient & c) {
        const auto a = c.allocate(64), b = c.allocate(32);
        c.send(Command::copy_tensor, bytes_of(CopyTensorRequest{vector_at(a, 0, 16), vector_at(b, 0, 8)}));
    });
    refuses(server, "outside", [](RawClient & c) {
        c.send(Command::memset_tensor, bytes_of(MemsetTensorRequest{vector_at(c.allocate(64), 0, 4), 16, 1, 0}));
    });
}

TEST(refuses_sizes_before_it_reads) {
    TestServer server(small());
    const uint64_t huge = 1ull << 60;
    for (const Command command :
         {Command::alloc_buffer, Command::get_alignment, Command::get_max_size, Command::buffer_get_base,
          Command::free_buffer, Command::buffer_clear, Command::set_tensor_hash, Command::get_tensor,
          Command::copy_tensor, Command::graph_compute, Command::get_device_memory, Command::init_tensor,
          Command::get_alloc_size, Command::device_count, Command::graph_recompute, Command::memset_tensor,
          Command::read, Command::offer, Command::use_weight}) {
        refuses(server, "bytes", [&](RawClient & c) { c.send(static_cast<uint8_t>(command), huge, {}); });
        refuses(server, "bytes", [&](RawClient & c) { c.send(static_cast<uint8_t>(command), 1, {0}); });
    }
    for (const Command command : {Command::set_tensor, Command::write, Command::put_weight}) {
        refuses(server, "bytes", [&](RawClient & c) { c.send(static_cast<uint8_t>(command), 1, {0}); });
    }
    refuses(server, "outside", [&](RawClient & c) {
        c.send(static_cast<uint8_t>(Command::write), huge, bytes_of(WriteRequest{c.allocate(64).buffer, 0, huge / 2}));
    });
    refuses(server, "outside", [&](RawClient & c) {
        c.send(static_cast<uint8_t>(Command::set_tensor), huge,
               bytes_of(SetTensorHeader{vector_at(c.allocate(64), 0, 4), 1, 0}));
    });
    refuses(server, "not known", [&](RawClient & c) { c.send(18, 0, {}); });
    refuses(server, "not known", [&](RawClient & c) { c.send(255, 0, {}); });
    refuses(server, "before", [&](RawClient & c) { c.send(Command::hello, Bytes(24)); });
    refuses(server, "no device", [&](RawClient & c) { c.send(Command::get_alignment, bytes_of(DeviceRequest{1})); });
}

TEST(answers_that_there_is_no_memory) {
    ServerOptions options = small();
    options.client_memory_limit = 40 << 20;
    TestServer server(options);
    RawClient a(server.server.port()), b(server.server.port());
    CHECK(a.hello());
    CHECK(b.hello());
    const auto ask = [](RawClient & c, uint64_t size) {
        return c.ask<AllocBufferAnswer>(Command::alloc_buffer, bytes_of(AllocBufferRequest{0, size})).buffer;
    };
    CHECK_EQUAL(ask(a, ~0ull), 0u);
    CHECK_EQUAL(ask(a, 0), 0u);
    CHECK_EQUAL(ask(a, 41 << 20), 0u);
    const uint64_t big = ask(a, 39 << 20);
    CHECK(big != 0);
    CHECK_EQUAL(ask(a, 2 << 20), 0u);
    CHECK_EQUAL(ask(b, 30 << 20), 0u);
    const auto memory = b.ask<DeviceMemoryAnswer>(Command::get_device_memory, bytes_of(DeviceRequest{0}));
    CHECK_EQUAL(memory.free, 25u << 20);
    CHECK_EQUAL(memory.total, 40u << 20);
    CHECK_EQUAL(server.free_memory(), 25u << 20);
    a.send(Command::free_buffer, bytes_of(BufferRequest{big}));
    CHECK_EQUAL(a.ask<uint32_t>(Command::device_count, {}), 1u);
    CHECK(ask(b, 30 << 20) != 0);
    for (int i = 0; i < 4096; i++) {
        if (!ask(a, 64)) throw Failure("no buffer " + std::to_string(i));
    }
    CHECK_EQUAL(ask(a, 64), 0u);
}

TEST(turns_away_one_master_too_many) {
    ServerOptions options = small();
    options.max_clients = 1;
    TestServer server(options);
    auto first = std::make_unique<RawClient>(server.server.port());
    CHECK(first->hello());
    RawClient second(server.server.port());
    CHECK(second.hello());
    CHECK_EQUAL(+second.greeting.capabilities.status, static_cast<int>(HelloStatus::busy));
    CHECK(second.hung_up());
    RawClient upstream(server.server.port());
    CHECK(!upstream.hello(false));
    CHECK_EQUAL(server.server.counters().clients_refused, 2u);
    CHECK(server.said("turned away: too many clients"));
    first.reset();
    RawClient third(server.server.port());
    CHECK(third.hello());
    CHECK_EQUAL(+third.greeting.capabilities.status, static_cast<int>(HelloStatus::ok));
}

TEST(strangers_do_not_hold_it_up) {
    ServerOptions options = small();
    options.handshake_timeout_ms = 2000;
    TestServer server(options);
    RawClient silent(server.server.port()), noise(server.server.port());
    noise.raw(Bytes(100, 'G'));
    CHECK(noise.hung_up());
    RawClient master(server.server.port());
    CHECK(master.hello());
    CHECK(silent.hung_up());
    CHECK(server.said("did not say HELLO in time"));
    std::vector<std::unique_ptr<RawClient>> crowd;
    for (int i = 0; i < 40; i++) crowd.push_back(std::make_unique<RawClient>(server.server.port()));
    CHECK(server.said("too many connections"));
    CHECK_EQUAL(master.ask<uint32_t>(Command::device_count, {}), 1u);
    CHECK(eventually([&] { return server.server.counters().clients_refused == 42; }));
}

TEST(listens_on_ipv6_and_names_a_port_in_use) {
    ServerOptions options = small();
    options.host = "::1";
    TestServer server(options);
    RawClient client(server.server.port(), "::1");
    CHECK(client.hello());
    options.port = server.server.port();
    try {
        Server again(options);
        CHECK(!"a port twice");
    } catch (const droid::CodedError & error) {
        CHECK_EQUAL(error.code(), "DROID_PORT_IN_USE");
    }
}

TEST(stops_and_says_so) {
    TestServer server(small());
    RawClient a(server.server.port()), b(server.server.port());
    CHECK(a.hello());
    CHECK(b.hello(false));
    const uint16_t port = server.server.port();
    std::thread other([&] { server.server.stop(); });
    server.server.stop();
    other.join();
    CHECK(a.refusal().find("shutting down") != std::string::npos);
    CHECK(a.reason == NoticeReason::shutting_down);
    CHECK(b.hung_up());
    CHECK_EQUAL(server.server.counters().clients, 0u);
    ServerOptions options = small();
    options.port = port;
    TestServer next(options);
    RawClient client(port);
    CHECK(client.hello());
}

TEST(connections_leave_nothing_behind) {
    TestServer server(small());
    const auto cycle = [&] {
        RawClient client(server.server.port());
        CHECK(client.hello());
        client.allocate(1 << 20);
    };
    const auto idle = [&] { return server.server.counters().clients == 0; };
    cycle();
    CHECK(eventually(idle));
    const size_t descriptors = entries("/proc/self/fd"), threads = entries("/proc/self/task");
    for (int i = 0; i < 200; i++) cycle();
    CHECK(eventually(
        [&] { return idle() && entries("/proc/self/fd") <= descriptors && entries("/proc/self/task") <= threads; }));
    CHECK_EQUAL(server.server.counters().bytes_allocated, 0u);
    CHECK_EQUAL(server.free_memory(), 64u << 20);
    CHECK_EQUAL(server.server.counters().clients_total, 201u);
}
