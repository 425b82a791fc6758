#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <map>
#include <memory>

#include "check.h"
#include "ggml-backend-impl.h"
#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "op_nodes.h"
#include "rpc/server/op_check.h"

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#endif

// A node and its sources, whose every field may be changed before they are given memory: what a peer can send.
namespace droid::test {

using namespace droid::rpc;

struct Item {
    ggml_tensor tensor;
    int memory;     // items with the same number share it
    size_t offset;  // into that
};

struct Graph {
    std::vector<Item> items;
    std::vector<int> nodes;                              // items, in the order of computation
    std::vector<std::array<int, GGML_MAX_SRC>> sources;  // of each item: items, -1 for none
    bool repacked = false;
};

using Context = std::unique_ptr<ggml_context, decltype(&ggml_free)>;

inline Context make_context() {
    return Context(ggml_init({64 * ggml_tensor_overhead() + ggml_graph_overhead_custom(64, false), nullptr, true}),
                   &ggml_free);
}

// Adds a tensor of a constructor, with what it needs to be computed when `deep` says so.
inline int add_item(Graph & graph, std::map<const ggml_tensor *, int> & known,
                    std::map<const ggml_tensor *, int> & memories, const ggml_tensor * tensor, bool is_node,
                    const ggml_tensor * computed) {
    if (known.count(tensor)) return known[tensor];
    const ggml_tensor * root = tensor->view_src ? tensor->view_src : tensor;
    const int memory = memories.emplace(root, static_cast<int>(memories.size())).first->second;
    const int index = static_cast<int>(graph.items.size());
    known[tensor] = index;
    graph.items.push_back({*tensor, memory, tensor->view_offs});
    graph.sources.emplace_back();
    graph.sources.back().fill(-1);
    Item & item = graph.items.back();
    item.tensor.view_src = nullptr;
    item.tensor.view_offs = 0;
    if (!is_node) {
        item.tensor.op = GGML_OP_NONE;
        for (ggml_tensor *& source : item.tensor.src) source = nullptr;
        return index;
    }
    for (int i = 0; i < GGML_MAX_SRC; i++) {
        if (!tensor->src[i]) continue;
        const bool node = tensor->src[i] == computed;
        const int source = add_item(graph, known, memories, tensor->src[i], node, computed);
        graph.sources[index][i] = source;
    }
    graph.nodes.push_back(index);
    return index;
}

inline Graph make_graph(const NodeKind & kind, Random & random) {
    const Context context = make_context();
    ggml_tensor * node = kind.build(context.get(), random);
    Graph graph;
    std::map<const ggml_tensor *, int> known, memories;
    const bool pair = !std::strcmp(kind.name, "norm_weighted");
    const ggml_tensor * computed = pair ? node->src[node->src[0]->op == GGML_OP_RMS_NORM ? 0 : 1] : nullptr;
    add_item(graph, known, memories, node, true, computed);
    graph.repacked = std::strstr(kind.name, "repacked") != nullptr;
    return graph;
}

// What the caller of check_node() promises for each tensor; its size in memory, -1 when the promise is broken.
inline int64_t promised_extent(const ggml_tensor & t) {
    if (t.type < 0 || t.type >= GGML_TYPE_COUNT || ggml_blck_size(t.type) == 0) return -1;
    const size_t item = ggml_type_size(t.type);
    if (item == 0 || t.ne[0] % ggml_blck_size(t.type) != 0) return -1;
    if (ggml_is_quantized(t.type) && t.nb[0] != item) return -1;
    __int128 elements = 1, extent = item;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        if (t.ne[i] < 1) return -1;
        elements *= t.ne[i];
        if (elements > INT64_MAX) return -1;
        const int64_t steps = (i == 0 ? t.ne[0] / ggml_blck_size(t.type) : t.ne[i]) - 1;
        extent += static_cast<__int128>(steps) * t.nb[i];
        if (extent > (1 << 22)) return -1;
    }
    return static_cast<int64_t>(extent);
}

inline size_t alignment_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_I64:
        case GGML_TYPE_F64: return 8;
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_I16: return 2;
        case GGML_TYPE_I8: return 1;
        default: return 4;
    }
}

// Memory with forbidden pages before and behind it. Tensors are put right against one of them.
class Arena {
  public:
    static constexpr size_t slots = 12;
    static constexpr size_t size = 5 << 20;

    Arena() {
        page_ = sysconf(_SC_PAGESIZE);
        for (char *& slot : slots_) {
            char * base = static_cast<char *>(
                mmap(nullptr, size + 2 * page_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
            CHECK(base != MAP_FAILED);
            slot = base + page_;
            CHECK(mprotect(slot, size, PROT_READ | PROT_WRITE) == 0);
        }
    }

    char * place(size_t slot, size_t bytes, size_t alignment, bool at_end) {
        char * data = slots_[slot] + (at_end ? (size - bytes) / alignment * alignment : 0);
#ifdef __SANITIZE_ADDRESS__
        ASAN_POISON_MEMORY_REGION(slots_[slot], size);
        ASAN_UNPOISON_MEMORY_REGION(data, bytes);
#endif
        return data;
    }

  private:
    size_t page_;
    char * slots_[slots];
};

inline void fill(char * data, size_t bytes, ggml_type type, Random & random) {
    const bool wild = random.chance(15);
    if (type == GGML_TYPE_F32 && !wild) {
        for (size_t i = 0; i + 4 <= bytes; i += 4) {
            float value = static_cast<float>(random.in(-1000, 1000)) / 250;
            if (random.in(0, 400) == 0) value = random.of({NAN, INFINITY, -INFINITY, 0.0f, 1e38f, 1e-40f});
            std::memcpy(data + i, &value, 4);
        }
    } else if (type == GGML_TYPE_F16 && !wild) {
        for (size_t i = 0; i + 2 <= bytes; i += 2) {
            const ggml_fp16_t value = ggml_fp32_to_fp16(random.chance(5) ? -INFINITY : random.in(-1000, 1000) / 250.0f);
            std::memcpy(data + i, &value, 2);
        }
    } else if (type == GGML_TYPE_I32 && !wild) {
        for (size_t i = 0; i + 4 <= bytes; i += 4) {
            const int32_t value = static_cast<int32_t>(random.in(-2, 40));
            std::memcpy(data + i, &value, 4);
        }
    } else {
        for (size_t i = 0; i < bytes; i++) data[i] = static_cast<char>(random.next());
    }
}

// Values the kernel can use; now and then one that it cannot.
inline void fill_indices(const IndexInput & input, Random & random) {
    const ggml_tensor & t = *input.tensor;
    for (int64_t i = 0; i < ggml_nelements(&t); i++) {
        const int64_t i0 = i % t.ne[0], i1 = i / t.ne[0] % t.ne[1], i2 = i / t.ne[0] / t.ne[1] % t.ne[2],
                      i3 = i / t.ne[0] / t.ne[1] / t.ne[2];
        char * item = static_cast<char *>(t.data) + i0 * t.nb[0] + i1 * t.nb[1] + i2 * t.nb[2] + i3 * t.nb[3];
        int64_t value = random.chance(30) ? input.last : random.in(input.first, input.last);
        if (input.distinct && random.chance(90)) value = std::min(input.last, i0);
        if (random.in(0, 2000) == 0) value = random.of({int64_t(-1), input.last + 1, int64_t(INT32_MIN)});
        if (t.type == GGML_TYPE_F32) {
            const float number = static_cast<float>(random.in(-50, 50));
            std::memcpy(item, &number, 4);
        } else {
            std::memcpy(item, &value, ggml_type_size(t.type));
        }
    }
}

// Those whose kernels are for repacked weights: llama.cpp's own and those of native/kernels/.
inline std::vector<ggml_backend_buffer_type_t> repacking_buffer_types() {
    ggml_backend_dev_t device = ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0);
    const auto extra = reinterpret_cast<ggml_backend_dev_get_extra_bufts_t>(
        ggml_backend_reg_get_proc_address(ggml_backend_cpu_reg(), "ggml_backend_dev_get_extra_bufts"));
    std::vector<ggml_backend_buffer_type_t> found;
    for (ggml_backend_buffer_type_t * type = extra ? extra(device) : nullptr; type && *type; type++) {
        const char * name = ggml_backend_buft_name(*type);
        if (!std::strcmp(name, "CPU_REPACK") || !std::strcmp(name, "CPU_INTERLEAVED")) found.push_back(*type);
    }
    return found;
}

// A graph in memory, ready to be checked and computed.
class Placed {
  public:
    Placed(Graph graph, Arena & arena, Random & random) : graph_(std::move(graph)) {
        std::map<int, size_t> sizes;
        std::map<int, size_t> alignments;
        for (const Item & item : graph_.items) {
            const int64_t extent = promised_extent(item.tensor);
            if (extent < 0 || item.offset % alignment_of(item.tensor.type) != 0) return;
            sizes[item.memory] = std::max(sizes[item.memory], item.offset + static_cast<size_t>(extent));
            alignments[item.memory] = std::max(alignments[item.memory], alignment_of(item.tensor.type));
            if (sizes[item.memory] > Arena::size) return;
        }
        if (sizes.size() > Arena::slots) return;
        std::map<int, char *> bases;
        const bool at_end = random.chance(80);
        for (const auto & [memory, size] : sizes) {
            bases[memory] = arena.place(bases.size(), size, alignments[memory], at_end);
        }
        for (Item & item : graph_.items) {
            item.tensor.data = bases[item.memory] + item.offset;
            item.tensor.buffer = nullptr;
            item.tensor.extra = nullptr;
            fill(static_cast<char *>(item.tensor.data), promised_extent(item.tensor), item.tensor.type, random);
        }
        if (graph_.repacked && !repack(random)) return;
        for (size_t i = 0; i < graph_.items.size(); i++) {
            for (int j = 0; j < GGML_MAX_SRC; j++) {
                const int source = graph_.sources[i][j];
                graph_.items[i].tensor.src[j] = source < 0 ? nullptr : &graph_.items[source].tensor;
            }
        }
        valid_ = true;
    }

    ~Placed() {
        if (weights_) ggml_backend_buffer_free(weights_);
    }

    bool valid() const { return valid_; }
    ggml_tensor & node(size_t i) { return graph_.items[graph_.nodes[i]].tensor; }
    size_t size() const { return graph_.nodes.size(); }

    std::string check() {
        for (size_t i = 0; i < size(); i++) {
            const std::string reason = check_node(node(i));
            if (!reason.empty()) return reason;
        }
        return {};
    }

    // Whether the indices in memory may be used. Gives them good values first.
    bool indices(Random & random) {
        std::vector<IndexInput> inputs;
        for (size_t i = 0; i < size(); i++) index_inputs(node(i), inputs);
        for (const IndexInput & input : inputs) {
            if (input.tensor->type != GGML_TYPE_F32 || random.chance(80)) fill_indices(input, random);
        }
        for (const IndexInput & input : inputs) {
            if (!check_indices(input).empty()) return false;
        }
        return true;
    }

    void compute(int threads, ggml_threadpool * pool) {
        const Context context = make_context();
        ggml_cgraph * graph = ggml_new_graph_custom(context.get(), 32, false);
        for (size_t i = 0; i < size(); i++) {
            node(i).flags = GGML_TENSOR_FLAG_COMPUTE;
            if (i + 1 == size() && node(i).op != GGML_OP_NONE) ggml_build_forward_expand(graph, &node(i));
        }
        // Beside a node for all threads, since a graph gets no more of them than its busiest node.
        float numbers[4] = {};
        ggml_tensor * a = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, 4);
        ggml_tensor * b = ggml_sqr(context.get(), a);
        a->data = b->data = numbers;
        b->op = GGML_OP_CONT;
        b->flags = GGML_TENSOR_FLAG_COMPUTE;
        ggml_graph_add_node(graph, b);
        ggml_cplan plan = ggml_graph_plan(graph, threads, pool);
        uint64_t bytes = 0;
        for (const Item & item : graph_.items) bytes += ggml_nbytes(&item.tensor);
        if (plan.work_size > (80 << 20) + 64 * bytes * threads) {
            std::fprintf(stderr, "work buffer of %zu bytes for %llu bytes of tensors\n", plan.work_size,
                         static_cast<unsigned long long>(bytes));
            std::abort();
        }
        const std::unique_ptr<uint8_t[]> work(new uint8_t[plan.work_size]);
        plan.work_data = work.get();
        if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) std::abort();
    }

    std::string text() {
        std::ostringstream out;
        for (size_t i = 0; i < size(); i++) {
            const ggml_tensor & t = node(i);
            out << ggml_op_name(t.op) << " params";
            for (int j = 0; j < 16; j++) out << " " << t.op_params[j];
            out << "\n  node  " << text(t);
            for (int j = 0; j < GGML_MAX_SRC; j++) {
                if (t.src[j]) out << "\n  src " << j << " " << text(*t.src[j]);
            }
            out << "\n";
        }
        return out.str();
    }

  private:
    static std::string text(const ggml_tensor & t) {
        std::ostringstream out;
        out << ggml_type_name(t.type) << " [" << t.ne[0] << " " << t.ne[1] << " " << t.ne[2] << " " << t.ne[3]
            << "] by [" << t.nb[0] << " " << t.nb[1] << " " << t.nb[2] << " " << t.nb[3] << "] at " << t.data
            << (t.extra ? " repacked" : "");
        return out.str();
    }

    // Puts the weights where a worker would have repacked them.
    bool repack(Random & random) {
        static const std::vector<ggml_backend_buffer_type_t> types = repacking_buffer_types();
        const int source = graph_.sources[graph_.nodes.back()][0];
        if (types.empty() || source < 0 || source == graph_.nodes.back()) return !types.empty();
        ggml_tensor & t = graph_.items[source].tensor;
        const size_t size = promised_extent(t);
        for (const ggml_backend_buffer_type_t type : types) {
            if (weights_) ggml_backend_buffer_free(weights_);
            weights_ = ggml_backend_buft_alloc_buffer(type, size);
            t.buffer = weights_;
            t.data = ggml_backend_buffer_get_base(weights_);
            ggml_backend_buffer_init_tensor(weights_, &t);
            // It has kernels for such weights; those of native/kernels/ are not for experts.
            if (t.extra || graph_.items[graph_.nodes.back()].tensor.op == GGML_OP_MUL_MAT_ID) break;
        }
        fill(static_cast<char *>(t.data), size, t.type, random);
        return true;
    }

    Graph graph_;
    ggml_backend_buffer_t weights_ = nullptr;
    bool valid_ = false;
};

inline void pack(ggml_tensor & t) {
    t.nb[0] = ggml_type_size(t.type);
    t.nb[1] = t.nb[0] * (t.ne[0] / std::max<int64_t>(1, ggml_blck_size(t.type)));
    for (int i = 2; i < GGML_MAX_DIMS; i++) t.nb[i] = t.nb[i - 1] * t.ne[i - 1];
}

inline void mutate(Graph & graph, Random & random) {
    const int node = graph.nodes[random.in(0, graph.nodes.size() - 1)];
    const int chosen = random.chance(35) ? node : static_cast<int>(random.in(0, graph.items.size() - 1));
    Item & item = graph.items[chosen];
    ggml_tensor & t = item.tensor;
    const int dim = static_cast<int>(random.in(0, 3));
    const auto other_size = [&](int64_t size) {
        const int64_t others[] = {1,
                                  2,
                                  size + 1,
                                  size - 1,
                                  size * 2,
                                  size / 2,
                                  size + 32,
                                  0,
                                  random.in(1, 70),
                                  graph.items[random.in(0, graph.items.size() - 1)].tensor.ne[random.in(0, 3)]};
        return others[random.in(0, 9)];
    };
    switch (random.in(0, 13)) {
        case 0: graph.items[node].tensor.op = static_cast<ggml_op>(random.in(0, GGML_OP_COUNT)); break;
        case 1:
        case 2: {
            int32_t & param = graph.items[node].tensor.op_params[random.in(0, 15)];
            const float number = random.of({0.0f, -1.0f, 1.0f, 0.5f, NAN, INFINITY, 1e30f});
            const int64_t old = param;
            const int64_t numbers[] = {0, 1, 2, 3, -1, old + 1, old - 1, old * 2, INT32_MAX, INT32_MIN, 0};
            param = static_cast<int32_t>(numbers[random.in(0, 10)]);
            if (random.chance(30)) std::memcpy(&param, &number, 4);
            break;
        }
        case 3:
            t.type = static_cast<ggml_type>(random.in(0, GGML_TYPE_COUNT - 1));
            if (random.chance(80)) pack(t);
            break;
        case 4:
        case 5:
            t.ne[dim] = other_size(t.ne[dim]);
            if (random.chance(70)) pack(t);
            break;
        case 6:
        case 7: {  // a size that several tensors share
            const int64_t from = t.ne[dim], to = other_size(from);
            for (Item & each : graph.items) {
                for (int64_t & size : each.tensor.ne) {
                    if (size == from && (from > 1 || random.chance(40))) size = to;
                }
                pack(each.tensor);
            }
            break;
        }
        case 8: std::swap(t.nb[dim], t.nb[random.in(0, 3)]); break;
        case 9: {
            const size_t strides[] = {
                0, t.nb[dim] * 2, t.nb[dim] + ggml_type_size(t.type), t.nb[dim] / 2, 1, t.nb[0], t.nb[random.in(0, 3)]};
            t.nb[dim] = strides[random.in(0, 6)];
            break;
        }
        case 10:
            std::swap(t.ne[dim], t.ne[random.in(0, 3)]);
            if (random.chance(60)) pack(t);
            break;
        case 11: {
            int & source = graph.sources[node][random.in(0, random.chance(90) ? 6 : 9)];
            source = random.chance(50) ? -1 : static_cast<int>(random.in(0, graph.items.size() - 1));
            if (source >= 0 && graph.items[source].tensor.op != GGML_OP_NONE) source = -1;
            break;
        }
        case 12:
#ifndef __SANITIZE_ADDRESS__  // which finds fault with copies onto themselves; they are harmless where nothing is
                              // exceeded
            item.memory = graph.items[random.in(0, graph.items.size() - 1)].memory;
            item.offset = random.chance(60) ? 0 : 4 * random.in(0, 40);
#endif
            break;
        default: {  // rows of one item, or one element: where kernels forget strides
            t.ne[random.in(0, 3)] = 1;
            if (random.chance(50)) t.nb[dim] *= random.in(0, 5);
            break;
        }
    }
}

}  // namespace droid::test
