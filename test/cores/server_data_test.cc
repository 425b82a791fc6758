// Inputs, results and graphs in the forms of level 1 of the extension.
#include <cmath>

#include "raw_client.h"
#include "rpc/half.h"
#include "rpc/packing.h"
#include "test_server.h"

using namespace droid::test;

namespace {

Bytes part(const UpdateRequest & request, const Bytes & data) {
    Bytes payload = bytes_of(request);
    append(payload, data.data(), data.size());
    return payload;
}

UpdateRequest update_of(const RawClient::Allocation & to, uint64_t offset, size_t size, size_t encoded, Form form,
                        int exponent = 0) {
    return {to.buffer,
            offset,
            static_cast<uint32_t>(size),
            static_cast<uint32_t>(encoded),
            static_cast<uint8_t>(form),
            static_cast<uint8_t>(exponent)};
}

Bytes packed_form(const Bytes & data) {
    Bytes packed;
    CHECK(pack(data.data(), data.size(), SIZE_MAX, packed));
    return packed;
}

}  // namespace

TEST(agrees_on_the_lower_level) {
    TestServer server(small());
    for (const uint8_t level : {0, 1, 2, 255}) {
        RawClient client(server.server.port());
        CHECK(client.hello(true, level));
        CHECK_EQUAL(+client.greeting.capabilities.level, std::min<int>(level, extension_level));
    }
    for (const Command command : {Command::update, Command::read_half, Command::packed_graph}) {
        RawClient old(server.server.port());
        CHECK(old.hello(true, 0));
        old.send(command, {});
        CHECK(old.refusal().find("level") != std::string::npos);
        RawClient upstream(server.server.port());
        CHECK(upstream.hello(false, 1));
        upstream.send(command, {});
        CHECK(upstream.hung_up());
    }
}

TEST(takes_data_in_every_form) {
    TestServer server(small());
    RawClient client(server.server.port());
    CHECK(client.hello());
    const auto to = client.allocate(4096);
    const Bytes plain = {1, 2, 3, 4, 5}, mask(512, 9), packed = packed_form(mask);
    const std::vector<ggml_fp16_t> halves = {ggml_fp32_to_fp16(1.5f), ggml_fp32_to_fp16(-2.0f)};
    Bytes half;
    append(half, halves.data(), 4);
    Bytes payload = part(update_of(to, 3, plain.size(), plain.size(), Form::plain), plain);
    for (const Bytes & more : {part(update_of(to, 100, mask.size(), packed.size(), Form::packed), packed),
                               part(update_of(to, 1000, 8, 4, Form::half, 3), half)}) {
        append(payload, more.data(), more.size());
    }
    client.send(Command::update, payload);
    CHECK(client.read(to, 3, 5) == plain);
    CHECK(client.read(to, 99, 514) == [&] {
        Bytes expected(514);
        std::copy(mask.begin(), mask.end(), expected.begin() + 1);
        return expected;
    }());
    const Bytes floats = client.read(to, 1000, 8);
    float values[2];
    std::memcpy(values, floats.data(), sizeof values);
    CHECK_EQUAL(values[0], 12.0f);
    CHECK_EQUAL(values[1], -16.0f);
}

TEST(gives_floats_as_halves) {
    TestServer server(small());
    RawClient client(server.server.port());
    CHECK(client.hello());
    const size_t count = 40000;  // more than one piece
    const auto from = client.allocate(4 * count + 64);
    std::vector<float> values(count);
    for (size_t i = 0; i < count; i++) values[i] = static_cast<float>(i) - 20000;
    values[7] = 1e6f;
    client.write(from, 64, values.data(), 4 * count);
    client.send(Command::read_half, bytes_of(ReadRequest{from.buffer, 64, 4 * count}));
    const Bytes answer = client.answer();
    CHECK_EQUAL(answer.size(), sizeof(HalfAnswer) + 2 * count);
    HalfAnswer head;
    std::memcpy(&head, answer.data(), sizeof head);
    CHECK_EQUAL(head.exponent, 4);
    std::vector<ggml_fp16_t> halves(count);
    std::memcpy(halves.data(), answer.data() + sizeof head, 2 * count);
    std::vector<float> got(count);
    from_half(halves.data(), count, head.exponent, got.data());
    for (size_t i = 0; i < count; i++) CHECK(std::fabs(got[i] - values[i]) <= std::fabs(values[i]) / 2048);
    client.send(Command::read_half, bytes_of(ReadRequest{from.buffer, 0, 0}));
    CHECK_EQUAL(client.answer().size(), sizeof(HalfAnswer));
}

TEST(refuses_updates_that_do_not_hold) {
    TestServer server(small());
    const auto update = [](size_t offset, size_t size, size_t encoded, Form form, const Bytes & data,
                           int exponent = 0) {
        return [=](RawClient & c) {
            c.send(Command::update, part(update_of(c.allocate(64), offset, size, encoded, form, exponent), data));
        };
    };
    const Bytes eight(8), packed = packed_form(Bytes(64, 1));
    refuses(server, "outside", update(60, 8, 8, Form::plain, eight));
    refuses(server, "outside", update(60, 64, packed.size(), Form::packed, packed));
    refuses(server, "outside", update(60, 16, 8, Form::half, eight));
    refuses(server, "as long", update(0, 9, 8, Form::plain, eight));
    refuses(server, "as long", update(0, 7, 8, Form::plain, eight));
    refuses(server, "unpacked", update(0, 63, packed.size(), Form::packed, packed));
    refuses(server, "unpacked", update(0, 8, 8, Form::packed, eight));
    refuses(server, "half as long", update(0, 8, 8, Form::half, eight));
    refuses(server, "lie like that", update(2, 16, 8, Form::half, eight));
    refuses(server, "lie like that", update(0, 18, 8, Form::half, eight));
    refuses(server, "exponent", update(0, 16, 8, Form::half, eight, max_half_exponent + 1));
    refuses(server, "no form 3", update(0, 8, 8, static_cast<Form>(3), eight));
    refuses(server, "bytes", update(0, 8, 9, Form::plain, eight));
    refuses(server, "too long", update(0, 64, max_packed_update + 1, Form::packed, Bytes(max_packed_update + 1)));
    refuses(server, "bytes", [](RawClient & c) { c.send(Command::update, {}); });
    refuses(server, "bytes", [](RawClient & c) { c.send(Command::update, Bytes(25)); });
    refuses(server, "no buffer", [&](RawClient & c) {
        c.send(Command::update, part(update_of({77, 0, 0}, 0, 8, 8, Form::plain, 0), eight));
    });
    const auto read = [](uint64_t offset, uint64_t size) {
        return [=](RawClient & c) {
            c.send(Command::read_half, bytes_of(ReadRequest{c.allocate(64).buffer, offset, size}));
        };
    };
    refuses(server, "outside", read(0, 68));
    refuses(server, "outside", read(~0ull - 3, 8));
    refuses(server, "lie like that", read(2, 8));
    refuses(server, "lie like that", read(0, 6));
}

TEST(refuses_packed_graphs_that_do_not_hold) {
    TestServer server(small());
    const auto graph = [](uint64_t size, const Bytes & packed) {
        return [=](RawClient & c) {
            Bytes payload = bytes_of(size);
            append(payload, packed.data(), packed.size());
            c.send(Command::packed_graph, payload);
        };
    };
    refuses(server, "bytes", [](RawClient & c) { c.send(Command::packed_graph, Bytes(7)); });
    refuses(server, "wrong size", graph(~0ull, Bytes(8)));
    refuses(server, "wrong size", graph(1ull << 40, Bytes(8)));
    refuses(server, "wrong size", graph(8, Bytes(8)));
    refuses(server, "unpacked", graph(100, Bytes(8)));
    // Of a size that there is no memory for, before it is taken.
    refuses(server, "no memory", graph(70u << 20, packed_form(Bytes(1000))), NoticeReason::out_of_memory);
    // It unpacks, and is no graph.
    const Bytes nothing(64, 0xff);
    refuses(server, "no device", graph(nothing.size(), packed_form(nothing)));
}

TEST(stops_although_a_master_left_a_lot_to_do) {
    TestServer server(small());
    RawClient client(server.server.port());
    CHECK(client.hello());
    const auto to = client.allocate(48 << 20);
    // Small requests for much work each, all of them received by the time of the stop.
    constexpr int count = 1500;
    Bytes requests;
    for (int i = 0; i < count; i++) {
        const Bytes request = bytes_of(BufferClearRequest{to.buffer, 7});
        requests.push_back(static_cast<uint8_t>(Command::buffer_clear));
        append(requests, static_cast<uint64_t>(request.size()));
        append(requests, request.data(), request.size());
    }
    client.raw(requests);
    CHECK(eventually([&] { return server.server.counters().messages_received > 2; }));
    const auto start = std::chrono::steady_clock::now();
    server.server.stop();
    CHECK(std::chrono::steady_clock::now() - start < std::chrono::seconds(2));
    CHECK(server.server.counters().messages_received < count);
}
