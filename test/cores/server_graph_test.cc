#include <stdlib.h>

#include <cmath>
#include <random>
#include <thread>

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "raw_client.h"
#include "test_server.h"

using namespace droid::test;

namespace {

std::vector<float> noise(size_t count, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> values(count);
    for (float & value : values) value = normal(random);
    return values;
}

Bytes quantized(ggml_type type, int64_t columns, int64_t rows, unsigned seed) {
    const std::vector<float> values = noise(columns * rows, seed);
    Bytes bytes(ggml_row_size(type, columns) * rows);
    ggml_quantize_chunk(type, values.data(), bytes.data(), 0, rows, columns, nullptr);
    return bytes;
}

// weights x input + bias, the shape of a layer.
struct Layer {
    static constexpr int64_t columns = 256, rows = 64, tokens = 3;

    ggml_tensor * weights;
    ggml_tensor * input;
    ggml_tensor * bias;
    ggml_tensor * product;
    ggml_tensor * output;

    Layer(ggml_context * context, ggml_type type) {
        weights = ggml_new_tensor_2d(context, type, columns, rows);
        input = ggml_new_tensor_2d(context, GGML_TYPE_F32, columns, tokens);
        bias = ggml_new_tensor_1d(context, GGML_TYPE_F32, rows);
        product = ggml_mul_mat(context, weights, input);
        output = ggml_add(context, product, bias);
    }
    void place(RemoteGraph & remote) {
        for (ggml_tensor * tensor : {weights, input, bias, product, output}) remote.place(tensor);
        remote.expand(output);
    }
};

// Where a model of one's own would have such weights, or null where it would have them as they are.
ggml_backend_buffer_type_t repacked_type(ggml_type type) {
    ggml_backend_dev_t cpu = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    const auto types = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    ggml_context * context = ggml_init({ggml_tensor_overhead() * 16, nullptr, true});
    Layer layer(context, type);
    ggml_backend_buffer_type_t found = nullptr;
    for (ggml_backend_buffer_type_t * list = types ? types(cpu) : nullptr; list && *list && !found; list++) {
        ggml_backend_buffer_t empty = ggml_backend_buft_alloc_buffer(*list, 0);
        layer.weights->buffer = empty;
        if (ggml_backend_dev_supports_op(cpu, layer.product)) found = *list;
        ggml_backend_buffer_free(empty);
    }
    ggml_free(context);
    return found;
}

bool repacks(ggml_type type) {
    return repacked_type(type) != nullptr;
}

// What ggml makes of it in this process, in the way a model of one's own would compute.
Bytes local(ggml_type type, const Bytes & weights, const std::vector<float> & input, const std::vector<float> & bias) {
    ggml_context * context = ggml_init({ggml_tensor_overhead() * 16 + ggml_graph_overhead(), nullptr, true});
    Layer layer(context, type);
    ggml_backend_t cpu = ggml_backend_cpu_init();
    ggml_backend_cpu_set_n_threads(cpu, 1);
    ggml_backend_buffer_t repacked = nullptr;
    if (repacks(type)) {
        repacked = ggml_backend_buft_alloc_buffer(repacked_type(type), weights.size());
        ggml_backend_tensor_alloc(repacked, layer.weights, ggml_backend_buffer_get_base(repacked));
    }
    ggml_backend_buffer_t buffer = ggml_backend_alloc_ctx_tensors(context, cpu);
    ggml_backend_tensor_set(layer.weights, weights.data(), 0, weights.size());
    ggml_backend_tensor_set(layer.input, input.data(), 0, ggml_nbytes(layer.input));
    ggml_backend_tensor_set(layer.bias, bias.data(), 0, ggml_nbytes(layer.bias));
    ggml_cgraph * graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, layer.output);
    CHECK(ggml_backend_graph_compute(cpu, graph) == GGML_STATUS_SUCCESS);
    Bytes result(ggml_nbytes(layer.output));
    ggml_backend_tensor_get(layer.output, result.data(), 0, result.size());
    ggml_backend_buffer_free(buffer);
    if (repacked) ggml_backend_buffer_free(repacked);
    ggml_backend_free(cpu);
    ggml_free(context);
    return result;
}

Bytes weight_request(const Tensor & tensor, const Bytes & data, bool with_data) {
    const Sha256 hash = sha256(data.data(), data.size());
    WeightRequest request = {tensor, {}};
    std::copy(hash.begin(), hash.end(), request.sha256);
    Bytes payload = bytes_of(request);
    if (with_data) append(payload, data.data(), data.size());
    return payload;
}

Bytes set_request(const Tensor & tensor, const Bytes & data, uint8_t cache = 0) {
    Bytes payload = bytes_of(SetTensorHeader{tensor, cache, 0});
    append(payload, data.data(), data.size());
    return payload;
}

// A master with a layer whose weights it has not sent yet.
struct Master {
    RawClient client;
    RawClient::Allocation buffer;
    RemoteGraph remote;
    Layer layer;

    Master(TestServer & server, ggml_type type, bool extended = true)
        : client(server.server.port()), buffer(greeted(client, extended)), remote(buffer), layer(remote.context, type) {
        layer.place(remote);
    }
    static RawClient::Allocation greeted(RawClient & client, bool extended) {
        CHECK(client.hello(extended));
        return client.allocate(1 << 20);
    }
    void set(const ggml_tensor * tensor, const void * data) {
        const auto * bytes = static_cast<const uint8_t *>(data);
        client.send(Command::set_tensor, set_request(remote.wire(tensor), Bytes(bytes, bytes + ggml_nbytes(tensor))));
    }
    void inputs(const std::vector<float> & input, const std::vector<float> & bias) {
        set(layer.input, input.data());
        set(layer.bias, bias.data());
    }
    Bytes output() { return get(layer.output); }
    Bytes get(const ggml_tensor * tensor) {
        client.send(Command::get_tensor, bytes_of(GetTensorRequest{remote.wire(tensor), 0, ggml_nbytes(tensor)}));
        return client.answer();
    }
    void compute() { client.send(Command::graph_compute, remote.message()); }
    void synchronize() { CHECK_EQUAL(client.ask<uint32_t>(Command::device_count, {}), 1u); }
};

const std::vector<float> input = noise(Layer::columns * Layer::tokens, 1), bias = noise(Layer::rows, 2);

Bytes weights_of(ggml_type type, unsigned seed = 3) {
    return quantized(type, Layer::columns, Layer::rows, seed);
}

struct Folder {
    std::string path;
    Folder() {
        char name[] = "/tmp/droid-server-test-XXXXXX";
        path = mkdtemp(name);
    }
    ~Folder() { (void)!system(("rm -rf '" + path + "'").c_str()); }
};

void refuses_graph(TestServer & server, const std::string & part, const std::function<Bytes(Master &)> & make) {
    Master other(server, GGML_TYPE_F32), master(server, GGML_TYPE_F32);
    const Bytes weights = weights_of(GGML_TYPE_F32);
    for (Master * m : {&other, &master}) {
        m->set(m->layer.weights, weights.data());
        m->inputs(input, bias);
    }
    master.client.send(Command::graph_compute, make(master));
    const std::string text = master.client.refusal();
    if (text.find(part) == std::string::npos) throw Failure("\"" + text + "\" does not say \"" + part + "\"");
    other.compute();
    CHECK(other.output() == local(GGML_TYPE_F32, weights, input, bias));
}

// The same graph with something changed in one of its tensors.
std::function<Bytes(Master &)> with(ggml_tensor * Layer::*which,
                                    const std::function<void(Tensor &, Master &)> & change) {
    return [=](Master & master) {
        std::vector<Tensor> tensors = master.remote.tensors();
        for (Tensor & tensor : tensors) {
            if (tensor.id == reinterpret_cast<uintptr_t>(master.layer.*which)) change(tensor, master);
        }
        return RemoteGraph::message(master.remote.ids(), tensors);
    };
}

uint64_t id_of(const ggml_tensor * tensor) {
    return reinterpret_cast<uintptr_t>(tensor);
}

}  // namespace

TEST(computes_what_ggml_computes) {
    for (const ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_Q8_0, GGML_TYPE_Q5_0, GGML_TYPE_Q4_0}) {
        for (const bool extended : {false, true}) {
            TestServer server(small());
            Master master(server, type, extended);
            const Bytes weights = weights_of(type);
            master.set(master.layer.weights, weights.data());
            master.inputs(input, bias);
            CHECK_EQUAL(server.said("connected"), true);
            master.compute();
            CHECK(master.output() == local(type, weights, input, bias));
            CHECK_EQUAL(server.server.counters().bytes_weights, ggml_is_quantized(type) ? weights.size() : 0);
            CHECK_EQUAL(server.server.counters().bytes_repacked, repacks(type) ? weights.size() : 0);

            const std::vector<float> next = noise(input.size(), 9);
            master.inputs(next, bias);
            master.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
            CHECK(master.output() == local(type, weights, next, bias));
            CHECK_EQUAL(server.server.counters().graphs_computed, 2u);
            if (extended) {
                master.client.read(master.buffer, master.remote.offset_of(master.layer.bias), 1);
                CHECK_EQUAL(master.client.compute_us, server.server.counters().compute_us.load());
            }
        }
    }
}

TEST(holds_the_weights_of_several_masters_once) {
    for (const ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q5_0, GGML_TYPE_Q8_0, GGML_TYPE_F16}) {
        TestServer server(small());
        const Bytes weights = weights_of(type);
        auto a = std::make_unique<Master>(server, type), b = std::make_unique<Master>(server, type);
        a->client.send(Command::put_weight, weight_request(a->remote.wire(a->layer.weights), weights, true));
        a->inputs(input, bias);
        a->compute();
        const Bytes expected = local(type, weights, input, bias);
        CHECK(a->output() == expected);

        Offer offers[2] = {};
        const Sha256 hash = sha256(weights.data(), weights.size());
        std::copy(hash.begin(), hash.end(), offers[0].sha256);
        offers[0].size = offers[1].size = weights.size();
        b->client.send(Command::offer, bytes_of(offers));
        CHECK(b->client.answer() == (Bytes{1, 0}));
        b->client.send(Command::use_weight, weight_request(b->remote.wire(b->layer.weights), weights, false));
        b->inputs(input, bias);
        b->compute();
        CHECK(b->output() == expected);
        const auto & counters = server.server.counters();
        CHECK_EQUAL(counters.bytes_weights_received, weights.size());
        CHECK_EQUAL(counters.bytes_weights_reused, weights.size());
        CHECK_EQUAL(counters.bytes_weights, weights.size());
        CHECK_EQUAL(counters.bytes_repacked, repacks(type) ? weights.size() : 0);
        const uint64_t used = (64 << 20) - server.free_memory();
        CHECK(used < (2 << 20) + weights.size());

        // The first one goes; the other keeps them.
        a.reset();
        CHECK(eventually([&] { return counters.clients == 1; }));
        CHECK(b->output() == expected);
        b->client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
        CHECK(b->output() == expected);
        b.reset();
        CHECK(eventually([&] { return counters.clients == 0 && counters.bytes_weights == 0; }));
        CHECK_EQUAL(counters.bytes_repacked, 0u);
        CHECK(eventually([&] { return server.free_memory() > (63 << 20); }));
    }
}

TEST(finds_weights_on_disk_for_both_kinds_of_masters) {
    Folder folder;
    ServerOptions options = small();
    options.cache_dir = folder.path;
    const Bytes weights = weights_of(GGML_TYPE_Q4_0);
    const Bytes expected = local(GGML_TYPE_Q4_0, weights, input, bias);
    const uint64_t fnv = fnv1a(weights.data(), weights.size());
    const auto set_hash = [&](Master & master) {
        return master.client.ask<uint8_t>(
            Command::set_tensor_hash, bytes_of(SetTensorHashRequest{master.remote.wire(master.layer.weights), 0, fnv}));
    };
    {
        TestServer server(options);
        Master master(server, GGML_TYPE_Q4_0, false);
        CHECK_EQUAL(set_hash(master), 0);
        master.client.send(Command::set_tensor, set_request(master.remote.wire(master.layer.weights), weights, 1));
        master.synchronize();
    }
    TestServer server(options);
    Master upstream(server, GGML_TYPE_Q4_0, false), ours(server, GGML_TYPE_Q4_0);
    CHECK_EQUAL(set_hash(upstream), 1);
    Offer offer = {};
    const Sha256 hash = sha256(weights.data(), weights.size());
    std::copy(hash.begin(), hash.end(), offer.sha256);
    offer.size = weights.size();
    ours.client.send(Command::offer, bytes_of(offer));
    CHECK(ours.client.answer() == Bytes{1});
    ours.client.send(Command::use_weight, weight_request(ours.remote.wire(ours.layer.weights), weights, false));
    for (Master * master : {&upstream, &ours}) {
        master->inputs(input, bias);
        master->compute();
        CHECK(master->output() == expected);
    }
    CHECK_EQUAL(server.server.counters().bytes_weights_received, 0u);
    CHECK_EQUAL(server.server.counters().bytes_weights_reused, 2 * weights.size());
    // Repacked, but the plain data is on disk.
    CHECK(ours.get(ours.layer.weights) == weights);
}

TEST(refuses_weights_that_are_not_what_they_are_called) {
    TestServer server(small());
    const Bytes weights = weights_of(GGML_TYPE_F16);
    const auto refuses_weight = [&](const std::string & part, Command command,
                                    const std::function<void(Tensor &, Bytes &)> & change) {
        Master master(server, GGML_TYPE_F16);
        Tensor tensor = master.remote.wire(master.layer.weights);
        Bytes data = weights;
        change(tensor, data);
        Bytes payload = weight_request(tensor, weights, false);
        if (command == Command::put_weight) append(payload, data.data(), data.size());
        master.client.send(command, payload);
        const std::string text = master.client.refusal();
        if (text.find(part) == std::string::npos) throw Failure("\"" + text + "\" does not say \"" + part + "\"");
    };
    refuses_weight("hash", Command::put_weight, [](Tensor &, Bytes & data) { data[17] ^= 1; });
    refuses_weight("bytes", Command::put_weight, [](Tensor &, Bytes & data) { data.pop_back(); });
    refuses_weight("no weight", Command::put_weight, [](Tensor & t, Bytes &) { t.op = GGML_OP_ADD; });
    refuses_weight("no weight", Command::put_weight, [](Tensor & t, Bytes &) { t.view_src = 5; });
    refuses_weight("no weight", Command::put_weight, [](Tensor & t, Bytes &) { t.nb[1] += 2; });
    refuses_weight("aligned", Command::put_weight, [](Tensor & t, Bytes &) { t.data += 2; });
    refuses_weight("outside", Command::put_weight, [](Tensor & t, Bytes &) { t.data += 1 << 20; });
    refuses_weight("no buffer", Command::put_weight, [](Tensor & t, Bytes &) { t.buffer = 9; });
    refuses_weight("does not have", Command::use_weight, [](Tensor &, Bytes &) {});
    CHECK(eventually([&] { return server.server.counters().bytes_weights == 0; }));
}

TEST(writes_over_weights) {
    TestServer server(small());
    const Bytes weights = weights_of(GGML_TYPE_F16), others = weights_of(GGML_TYPE_F16, 8);
    Master a(server, GGML_TYPE_F16), b(server, GGML_TYPE_F16);
    for (Master * master : {&a, &b}) {
        master->client.send(Command::put_weight,
                            weight_request(master->remote.wire(master->layer.weights), weights, true));
        master->inputs(input, bias);
        master->compute();
    }
    // A part: the rest stays what it was, also after the graph had used it; the other master sees nothing of it.
    Bytes changed = weights;
    std::copy(others.begin(), others.begin() + 100, changed.begin() + 50);
    a.client.write(a.buffer, a.remote.offset_of(a.layer.weights) + 50, others.data(), 100);
    CHECK(a.get(a.layer.weights) == changed);
    a.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
    CHECK(a.output() == local(GGML_TYPE_F16, changed, input, bias));
    b.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
    CHECK(b.output() == local(GGML_TYPE_F16, weights, input, bias));
    // All of it.
    b.client.write(b.buffer, b.remote.offset_of(b.layer.weights), others.data(), others.size());
    b.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
    CHECK(b.output() == local(GGML_TYPE_F16, others, input, bias));
    CHECK_EQUAL(server.server.counters().bytes_weights, 0u);
}

TEST(refuses_to_take_repacked_weights_apart) {
    if (!repacks(GGML_TYPE_Q4_0)) return;
    TestServer server(small());
    const Bytes weights = weights_of(GGML_TYPE_Q4_0);
    const auto repacked = [&] {
        auto master = std::make_unique<Master>(server, GGML_TYPE_Q4_0);
        master->client.send(Command::put_weight,
                            weight_request(master->remote.wire(master->layer.weights), weights, true));
        master->inputs(input, bias);
        master->compute();
        master->synchronize();
        return master;
    };
    {
        auto a = repacked();
        CHECK_EQUAL(server.server.counters().bytes_repacked, weights.size());
        a->client.send(Command::get_tensor, bytes_of(GetTensorRequest{a->remote.wire(a->layer.weights), 0, 18}));
        CHECK(a->client.refusal().find("repacked") != std::string::npos);
    }
    // Who comes back with it can use it in any way, since it is not repacked again.
    auto b = repacked();
    CHECK_EQUAL(server.server.counters().bytes_repacked, 0u);
    CHECK(b->get(b->layer.weights) == weights);
    b->client.write(b->buffer, b->remote.offset_of(b->layer.weights), "1", 1);
    b->synchronize();
}

TEST(refuses_graphs_that_are_none) {
    TestServer server(small());
    const auto raw = [](uint32_t device, uint32_t n_nodes, uint32_t n_tensors) {
        return [=](Master &) {
            Bytes bytes = bytes_of(device);
            append(bytes, n_nodes);
            append(bytes, n_tensors);
            return bytes;
        };
    };
    refuses_graph(server, "no device", raw(1, 0, 0));
    refuses_graph(server, "nodes", raw(0, UINT32_MAX, 0));
    refuses_graph(server, "within its nodes", raw(0, 1, 0));
    refuses_graph(server, "tensors", raw(0, 0, UINT32_MAX));
    refuses_graph(server, "tensors", raw(0, 0, 1));
    refuses_graph(server, "header", [](Master &) { return Bytes(8); });
    refuses_graph(server, "not in it", [](Master & m) { return RemoteGraph::message({77}, m.remote.tensors()); });
    refuses_graph(server, "not in it", [](Master & m) { return RemoteGraph::message({0}, m.remote.tensors()); });
    refuses_graph(server, "twice", [](Master & m) {
        return RemoteGraph::message({id_of(m.layer.product), id_of(m.layer.product)}, m.remote.tensors());
    });
    refuses_graph(server, "order", [](Master & m) {
        return RemoteGraph::message({id_of(m.layer.output), id_of(m.layer.product)}, m.remote.tensors());
    });
    refuses_graph(server, "order",
                  with(&Layer::product, [](Tensor & t, Master & m) { t.src[1] = id_of(m.layer.output); }));
    refuses_graph(server, "no id", with(&Layer::bias, [](Tensor & t, Master &) { t.id = 0; }));
    refuses_graph(server, "same id", with(&Layer::bias, [](Tensor & t, Master & m) { t.id = id_of(m.layer.input); }));
    refuses_graph(server, "not in it", with(&Layer::output, [](Tensor & t, Master &) { t.src[1] = 77; }));
    for (const ggml_op op : {GGML_OP_MAP_CUSTOM1, GGML_OP_MAP_CUSTOM2, GGML_OP_MAP_CUSTOM3, GGML_OP_CUSTOM}) {
        refuses_graph(server, "not allowed", with(&Layer::output, [=](Tensor & t, Master &) { t.op = op; }));
    }
    refuses_graph(server, "does not exist", with(&Layer::output, [](Tensor & t, Master &) { t.op = 100000; }));
    refuses_graph(server, "does not exist", with(&Layer::bias, [](Tensor & t, Master &) { t.type = 40000; }));
    refuses_graph(server, "outside", with(&Layer::output, [](Tensor & t, Master &) { t.data += 1 << 20; }));
    refuses_graph(server, "outside", with(&Layer::weights, [](Tensor & t, Master &) { t.data -= 4; }));
    refuses_graph(server, "outside", with(&Layer::input, [](Tensor & t, Master &) { t.nb[1] = 1 << 20; }));
    refuses_graph(server, "in no buffer", with(&Layer::bias, [](Tensor & t, Master &) { t.buffer = 0; }));
    refuses_graph(server, "no buffer", with(&Layer::bias, [](Tensor & t, Master &) { t.buffer = 1000; }));
    refuses_graph(server, "without elements", with(&Layer::input, [](Tensor & t, Master &) { t.ne[1] = 0; }));
    refuses_graph(server, "", with(&Layer::input, [](Tensor & t, Master &) { t.ne[0] = 128; }));
    refuses_graph(server, "", with(&Layer::product, [](Tensor & t, Master &) { t.src[0] = 0; }));
}

TEST(never_computes_what_nobody_needs) {
    TestServer server(small());
    Master master(server, GGML_TYPE_F32);
    const Bytes weights = weights_of(GGML_TYPE_F32);
    master.set(master.layer.weights, weights.data());
    master.inputs(input, bias);
    // Leaves may come with an ancestry that makes no sense here; nodes without elements or a wish to be computed are
    // passed over.
    std::vector<Tensor> tensors = master.remote.tensors();
    for (Tensor & tensor : tensors) {
        if (tensor.id != id_of(master.layer.input)) continue;
        tensor.op = GGML_OP_CUSTOM;
        tensor.src[0] = 12345;
    }
    std::vector<uint64_t> ids = master.remote.ids();
    Tensor empty = tensors.back(), idle = tensors.back();
    empty.id = 1;
    empty.ne[1] = 0;
    idle.id = 2;
    idle.flags = 0;
    idle.op = GGML_OP_MUL_MAT;
    idle.src[0] = 0;
    tensors.push_back(empty);
    tensors.push_back(idle);
    ids.push_back(1);
    ids.push_back(2);
    master.client.send(Command::graph_compute, RemoteGraph::message(ids, tensors));
    CHECK(master.output() == local(GGML_TYPE_F32, weights, input, bias));
}

TEST(checks_indices_when_they_are_used) {
    TestServer server(small());
    struct Rows {
        RawClient client;
        RawClient::Allocation buffer;
        RemoteGraph remote;
        ggml_tensor *table, *scores, *order, *rows;
        explicit Rows(uint16_t port) : client(port), buffer(Master::greeted(client, true)), remote(buffer) {
            table = ggml_new_tensor_2d(remote.context, GGML_TYPE_F32, 8, 4);
            scores = ggml_new_tensor_1d(remote.context, GGML_TYPE_I32, 4);
            order = ggml_cpy(remote.context, scores, ggml_new_tensor_1d(remote.context, GGML_TYPE_I32, 4));
            rows = ggml_get_rows(remote.context, table, order);
            remote.place(table);
            remote.place(scores);
            remote.place(order->view_src);
            remote.place(order);
            remote.place(rows);
            remote.expand(rows);
            std::vector<float> values = noise(32, 5);
            client.write(buffer, remote.offset_of(table), values.data(), 128);
        }
        void set(std::vector<int32_t> ids) { client.write(buffer, remote.offset_of(scores), ids.data(), 16); }
    };
    Rows good(server.server.port()), bad(server.server.port());
    good.set({3, 0, 2, 1});
    good.client.send(Command::graph_compute, good.remote.message());
    const Bytes table = good.client.read(good.buffer, good.remote.offset_of(good.table), 128);
    const Bytes rows = good.client.read(good.buffer, good.remote.offset_of(good.rows), 128);
    CHECK(std::equal(rows.begin(), rows.begin() + 32, table.begin() + 96));
    // Indices that a node of the graph writes, and that were right the first time.
    good.set({3, 0, 2, 4});
    good.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
    CHECK(good.client.refusal().find("graph_recompute") != std::string::npos);
    bad.set({-1, 0, 0, 0});
    bad.client.send(Command::graph_compute, bad.remote.message());
    CHECK(bad.client.refusal().find("graph_compute") != std::string::npos);

    // A node that overwrites its own indices.
    Rows self(server.server.port());
    self.set({0, 1, 2, 3});
    std::vector<Tensor> tensors = self.remote.tensors();
    for (Tensor & tensor : tensors) {
        if (tensor.id == id_of(self.rows)) tensor.data = self.buffer.base + self.remote.offset_of(self.order);
    }
    self.client.send(Command::graph_compute, RemoteGraph::message(self.remote.ids(), tensors));
    const std::string text = self.client.refusal();
    if (text.find("overwrites") == std::string::npos) throw Failure(text);
}

TEST(repacked_experts_are_used_once_per_token) {
    if (!repacks(GGML_TYPE_Q4_0)) return;
    TestServer server(small());
    constexpr int64_t experts = 4, chosen = 2, tokens = 3;
    struct Experts {
        RawClient client;
        RawClient::Allocation buffer;
        RemoteGraph remote;
        ggml_tensor *weights, *input, *ids, *output;
        explicit Experts(TestServer & server)
            : client(server.server.port()), buffer(Master::greeted(client, true)), remote(buffer) {
            weights = ggml_new_tensor_3d(remote.context, GGML_TYPE_Q4_0, Layer::columns, Layer::rows, experts);
            input = ggml_new_tensor_3d(remote.context, GGML_TYPE_F32, Layer::columns, 1, tokens);
            ids = ggml_new_tensor_2d(remote.context, GGML_TYPE_I32, chosen, tokens);
            output = ggml_mul_mat_id(remote.context, weights, input, ids);
            for (ggml_tensor * tensor : {weights, input, ids, output}) remote.place(tensor);
            remote.expand(output);
            const Bytes data = quantized(GGML_TYPE_Q4_0, Layer::columns, Layer::rows * experts, 6);
            client.send(Command::put_weight, weight_request(remote.wire(weights), data, true));
            const std::vector<float> values = noise(Layer::columns * tokens, 7);
            client.write(buffer, remote.offset_of(input), values.data(), values.size() * sizeof(float));
        }
        void compute(const std::vector<int32_t> & choice) {
            client.write(buffer, remote.offset_of(ids), choice.data(), choice.size() * sizeof(int32_t));
            client.send(Command::graph_compute, remote.message());
        }
    };
    Experts master(server);
    master.compute({0, 1, 1, 2, 3, 0});
    const Bytes once = master.client.read(master.buffer, master.remote.offset_of(master.output), 64);
    CHECK(server.server.counters().bytes_repacked > 0);
    master.compute({0, 1, 1, 2, 3, 0});
    CHECK(master.client.read(master.buffer, master.remote.offset_of(master.output), 64) == once);
    master.compute({3, 3, 3, 3, 3, 3});
    const std::string text = master.client.refusal();
    if (text.find("twice") == std::string::npos) throw Failure(text);
    Experts outside(server);
    outside.compute({0, 1, 1, 2, 3, 4});
    CHECK(outside.client.refusal().find("graph_compute") != std::string::npos);
}

TEST(recompute_needs_a_graph_whose_buffers_are_there) {
    TestServer server(small());
    refuses(server, "no graph", [](RawClient & c) { c.send(Command::graph_recompute, bytes_of(DeviceRequest{0})); });
    Master master(server, GGML_TYPE_F32);
    master.compute();
    master.client.send(Command::free_buffer, bytes_of(BufferRequest{master.buffer.buffer}));
    master.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
    CHECK(master.client.refusal().find("no buffer") != std::string::npos);
}

TEST(masters_compute_at_the_same_time_and_stop_ends_it) {
    ServerOptions options = small();
    options.threads = 2;
    TestServer server(options);
    const Bytes weights = weights_of(GGML_TYPE_Q4_0);
    const Bytes expected = local(GGML_TYPE_Q4_0, weights, input, bias);
    std::atomic<int> right{0}, wrong{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; i++) {
        threads.emplace_back([&, i] {
            try {
                Master master(server, GGML_TYPE_Q4_0, i % 2 == 0);
                master.set(master.layer.weights, weights.data());
                master.inputs(input, bias);
                master.compute();
                for (;;) {
                    if (master.output() != expected) wrong++;
                    right++;
                    master.client.send(Command::graph_recompute, bytes_of(DeviceRequest{0}));
                }
            } catch (const std::exception &) {
                // stopped
            }
        });
    }
    CHECK(eventually([&] { return right > 200; }));
    server.server.stop();
    for (std::thread & thread : threads) thread.join();
    CHECK_EQUAL(wrong.load(), 0);
    CHECK_EQUAL(server.server.counters().clients, 0u);
    CHECK_EQUAL(server.server.counters().clients_dropped, 0u);
    CHECK_EQUAL(server.server.counters().bytes_weights, 0u);
}
