#include "rpc/server/graph_reader.h"

#include <algorithm>
#include <cstring>
#include <unordered_map>

#include "rpc/server/refusal.h"
#include "rpc/server/tensor_check.h"

namespace droid::rpc {

namespace {

// Comparing each node's output with each index input is cheap for every honest graph.
constexpr uint64_t max_comparisons = 1ull << 28;

constexpr uint32_t none = UINT32_MAX;

class GraphReader {
  public:
    GraphReader(Buffers & buffers, WeightStore & store)
        : buffers_(buffers), store_(store), graph_(std::make_unique<Graph>()) {}

    std::unique_ptr<Graph> read(const uint8_t * payload, size_t size) {
        parse(payload, size);
        select();
        read_tensors();
        connect();
        place_outputs();
        place_inputs();
        check_nodes();
        choose_layouts();
        count_uses();
        cut();
        graph_->buffers_epoch = buffers_.epoch();
        return std::move(graph_);
    }

  private:
    // What a weight is needed as.
    struct WeightUse {
        std::shared_ptr<Weight> weight;
        std::vector<uint32_t> tensors;
        std::vector<ggml_tensor *> products;  // nodes that multiply all of it with something
        bool otherwise = false;
    };

    struct Output {
        const char * begin;
        const char * end;
    };

    ggml_tensor & tensor(uint32_t slot) { return graph_->tensors[slot]; }
    bool computes(uint32_t node) const { return computes_[node]; }

    void parse(const uint8_t * payload, size_t size) {
        uint32_t n_nodes = 0, n_tensors = 0;
        const size_t head = 2 * sizeof(uint32_t);
        if (size < head + sizeof(uint32_t)) throw Refusal("the graph ends within its header");
        std::memcpy(&n_nodes, payload + sizeof(uint32_t), sizeof n_nodes);
        if (n_nodes > max_graph_nodes) throw Refusal("the graph has " + std::to_string(n_nodes) + " nodes");
        const size_t tensors_at = head + n_nodes * sizeof(uint64_t) + sizeof(uint32_t);
        if (size < tensors_at) throw Refusal("the graph ends within its nodes");
        std::memcpy(&n_tensors, payload + tensors_at - sizeof(uint32_t), sizeof n_tensors);
        if (n_tensors > max_graph_tensors) throw Refusal("the graph has " + std::to_string(n_tensors) + " tensors");
        if (size != tensors_at + n_tensors * sizeof(Tensor))
            throw Refusal("the graph's size is not that of its tensors");
        wire_ = reinterpret_cast<const Tensor *>(payload + tensors_at);  // packed: it may lie anywhere

        ids_.reserve(n_tensors);
        for (uint32_t i = 0; i < n_tensors; i++) {
            const uint64_t id = wire_[i].id;
            ids_.emplace_back(id, i);
        }
        std::sort(ids_.begin(), ids_.end());
        for (size_t i = 0; i < ids_.size(); i++) {
            if (ids_[i].first == 0) throw Refusal("a tensor of the graph has no id");
            if (i > 0 && ids_[i].first == ids_[i - 1].first) throw Refusal("two tensors of the graph have the same id");
        }
        slots_.assign(n_tensors, none);
        node_wires_.reserve(n_nodes);
        for (uint32_t i = 0; i < n_nodes; i++) {
            uint64_t id = 0;
            std::memcpy(&id, payload + head + i * sizeof id, sizeof id);
            const uint32_t wire = find(id);
            if (slots_[wire] != none) throw Refusal("a node is twice in the graph");
            slots_[wire] = i;
            node_wires_.push_back(wire);
        }
    }

    uint32_t find(uint64_t id) const {
        const auto found = std::lower_bound(ids_.begin(), ids_.end(), std::make_pair(id, uint32_t{0}));
        if (id == 0 || found == ids_.end() || found->first != id) {
            throw Refusal("the graph refers to tensor " + std::to_string(id) + ", which is not in it");
        }
        return found->second;
    }

    // Which tensors are needed: the nodes and what the nodes read. Masters send whole ancestries.
    void select() {
        used_ = node_wires_;
        for (const uint32_t node : node_wires_) {
            for (int s = 0; s < GGML_MAX_SRC; s++) {
                const uint64_t id = wire_[node].src[s];
                if (id == 0) continue;
                const uint32_t source = find(id);
                if (slots_[source] != none) continue;
                slots_[source] = static_cast<uint32_t>(used_.size());
                used_.push_back(source);
            }
        }
    }

    void read_tensors() {
        graph_->tensors.resize(used_.size());
        ranges_.resize(used_.size());
        for (size_t i = 0; i < used_.size(); i++) {
            const Tensor & wire = wire_[used_[i]];
            ggml_tensor & read = graph_->tensors[i];
            ranges_[i] = read_tensor(wire, read);
            // Kernels only look at a tensor's data, and this keeps them from not storing what a view shows.
            if (wire.view_src != 0) read.flags |= GGML_TENSOR_FLAG_OUTPUT;
        }
    }

    void connect() {
        const size_t n_nodes = node_wires_.size();
        graph_->nodes.reserve(n_nodes);
        computes_.assign(n_nodes, false);
        needed_.assign(used_.size(), false);
        for (size_t i = 0; i < n_nodes; i++) {
            ggml_tensor & node = graph_->tensors[i];
            graph_->nodes.push_back(&node);
            if (!op_allowed(node.op)) throw Refusal(std::string("the op ") + ggml_op_name(node.op) + " is not allowed");
            computes_[i] =
                !ggml_op_is_empty(node.op) && (node.flags & GGML_TENSOR_FLAG_COMPUTE) && !ggml_is_empty(&node);
            if (!computes_[i] && !ggml_op_is_empty(node.op)) node.op = GGML_OP_NONE;
            for (int s = 0; s < GGML_MAX_SRC; s++) {
                const uint64_t id = wire_[node_wires_[i]].src[s];
                if (id == 0) continue;
                const uint32_t source = slots_[find(id)];
                // ggml_cast() makes a node its own source.
                if (source < n_nodes && source > i)
                    throw Refusal("the graph's nodes are not in the order of their use");
                if (!computes_[i]) continue;
                const bool empty = ggml_is_empty(&tensor(source));
                // Models whose heads have a part of no elements concatenate it all the same.
                if (empty && node.op != GGML_OP_CONCAT) {
                    throw Refusal("node \"" + std::string(node.name) + "\" reads a tensor without elements");
                }
                node.src[s] = &tensor(source);
                if (!empty) needed_[source] = true;
            }
            if (computes_[i]) needed_[i] = true;
        }
    }

    Buffer & buffer_of(uint32_t slot) {
        if (ranges_[slot].buffer == 0) {
            throw Refusal("tensor \"" + std::string(tensor(slot).name) + "\" is in no buffer of this worker");
        }
        return buffers_.at(ranges_[slot].buffer);
    }

    // First of all: a weight that the graph writes to is none.
    void place_outputs() {
        for (uint32_t i = 0; i < node_wires_.size(); i++) {
            if (!computes(i)) continue;
            Buffer & buffer = buffer_of(i);
            buffer.modifiable(buffer.offset_of(ranges_[i].address, ranges_[i].size), ranges_[i].size);
            buffer.mark_computed();
        }
    }

    void place_inputs() {
        for (uint32_t i = 0; i < used_.size(); i++) {
            if (!needed_[i]) continue;
            Buffer & buffer = buffer_of(i);
            const uint64_t offset = buffer.offset_of(ranges_[i].address, ranges_[i].size);
            const Buffer::Held held = buffer.held(offset, ranges_[i].size);
            if (!held.weight) {
                tensor(i).data = buffer.modifiable(offset, ranges_[i].size);
                continue;
            }
            WeightUse & use = uses_[held.weight.get()];
            use.weight = held.weight;
            use.tensors.push_back(i);
            weight_of_.emplace(&tensor(i), held);
        }
        for (uint32_t i = 0; i < node_wires_.size(); i++) {
            if (computes(i)) note_weights(tensor(i));
        }
        for (auto & [weight, use] : uses_) {
            const Weight::State state = weight->state();
            if (use.otherwise || !state.repacked) {
                use_plain(use);
            } else {
                use_repacked(use, state.repacked, nullptr);
            }
        }
    }

    void note_weights(ggml_tensor & node) {
        for (int s = 0; s < GGML_MAX_SRC; s++) {
            if (!node.src[s]) continue;
            const auto found = weight_of_.find(node.src[s]);
            if (found == weight_of_.end()) continue;
            const ggml_tensor & source = *node.src[s];
            WeightUse & use = uses_[found->second.weight.get()];
            const bool whole = found->second.offset == 0 && ggml_is_contiguous(&source) &&
                               source.nb[0] == ggml_type_size(source.type) &&
                               ggml_nbytes(&source) == found->second.weight->size();
            const bool product = s == 0 && (node.op == GGML_OP_MUL_MAT || node.op == GGML_OP_MUL_MAT_ID);
            if (whole && product) {
                use.products.push_back(&node);
            } else {
                use.otherwise = true;
            }
        }
    }

    void use_plain(WeightUse & use) {
        std::shared_ptr<const uint8_t> data = use.weight->plain(use.otherwise);
        for (const uint32_t slot : use.tensors) {
            ggml_tensor & weight = tensor(slot);
            weight.data = const_cast<uint8_t *>(data.get()) + weight_of_.at(&weight).offset;  // no node writes there
            weight.buffer = nullptr;
            weight.extra = nullptr;
        }
        graph_->owners.push_back(std::move(data));
    }

    void use_repacked(WeightUse & use, const std::shared_ptr<const RepackedWeight> & repacked,
                      ggml_backend_buffer_t buffer) {
        for (const uint32_t slot : use.tensors) {
            tensor(slot).data = repacked->data;
            tensor(slot).buffer = buffer;
            tensor(slot).extra = buffer ? repacked->extra : nullptr;
        }
        graph_->owners.push_back(repacked);
    }

    void check_nodes() {
        for (uint32_t i = 0; i < node_wires_.size(); i++) {
            if (!computes(i)) continue;
            const std::string problem = check_node(tensor(i));
            if (!problem.empty()) throw Refusal("node \"" + std::string(tensor(i).name) + "\": " + problem);
        }
    }

    // After the checks: what follows asks ggml about the nodes.
    void choose_layouts() {
        for (auto & [weight, use] : uses_) {
            const uint64_t epoch = weight->epoch();
            graph_->weights.emplace_back(use.weight, epoch);
            if (use.otherwise || use.products.empty()) continue;
            const ggml_tensor & first = *use.products.front()->src[0];
            const bool alike = std::all_of(use.products.begin(), use.products.end(), [&](const ggml_tensor * node) {
                return node->src[0]->type == first.type && ggml_are_same_shape(node->src[0], &first);
            });
            const bool repacked = alike && store_.repack(*weight, use.products);
            const Weight::State state = weight->state();
            if (repacked && state.repacked) {
                use_repacked(use, state.repacked, state.repacked->buffer);
            } else {
                use_plain(use);
            }
            graph_->weights.back().second = weight->epoch();
        }
    }

    // ggml fuses a node with its only user, and then does not store it. The count on the wire is that of the master's
    // whole graph, of which this one may be a part.
    void count_uses() {
        std::vector<int32_t> own(used_.size());
        for (const uint32_t node : node_wires_) {
            for (int s = 0; s < GGML_MAX_SRC; s++) {
                const uint64_t id = wire_[node].src[s];
                if (id != 0) own[slots_[find(id)]]++;
            }
        }
        const size_t size = ggml_hash_size(2 * node_wires_.size());
        graph_->hash_keys.resize(size);
        graph_->hash_used.resize(ggml_bitset_size(size));
        graph_->use_counts.resize(size);
        ggml_hash_set set = {size, graph_->hash_used.data(), graph_->hash_keys.data()};
        for (uint32_t i = 0; i < node_wires_.size(); i++) {
            constexpr int32_t several = 2;
            const int32_t wire = wire_[node_wires_[i]].use_count;
            graph_->use_counts[ggml_hash_insert(&set, &tensor(i))] = wire > 0 ? std::max(wire, own[i]) : several;
        }
    }

    Output output_of(uint32_t node) {
        const char * begin = static_cast<const char *>(tensor(node).data);
        return {begin, begin + ranges_[node].size};
    }

    // A segment begins before each node whose index inputs are computed in what would be the same segment.
    void cut() {
        struct Written {
            const char * begin;
            const char * end;
            uint32_t after = 0;  // no node at or after this one has written there so far
        };
        const uint32_t n_nodes = static_cast<uint32_t>(node_wires_.size());
        std::vector<std::vector<std::pair<IndexInput, size_t>>> inputs(n_nodes);  // and the index into ranges
        std::vector<Written> ranges;
        std::unordered_map<const void *, size_t> known;  // by tensor
        std::vector<IndexInput> found;
        for (uint32_t i = 0; i < n_nodes; i++) {
            if (!computes(i)) continue;
            found.clear();
            index_inputs(tensor(i), found);
            for (const IndexInput & input : found) {
                const auto [entry, added] = known.emplace(input.tensor, ranges.size());
                if (added) {
                    const char * begin = static_cast<const char *>(input.tensor->data);
                    ranges.push_back({begin, begin + ranges_[input.tensor - graph_->tensors.data()].size});
                }
                inputs[i].emplace_back(input, entry->second);
            }
        }
        if (static_cast<uint64_t>(n_nodes) * ranges.size() > max_comparisons) {
            throw Refusal("the graph has too many index inputs");
        }
        for (uint32_t i = 0; i < n_nodes; i++) {
            if (graph_->segments.empty()) graph_->segments.emplace_back();
            for (const auto & [input, range] : inputs[i]) {
                if (ranges[range].after > static_cast<uint32_t>(graph_->segments.back().first)) {
                    graph_->segments.emplace_back();
                    graph_->segments.back().first = static_cast<int>(i);
                }
                graph_->segments.back().indices.push_back(input);
            }
            graph_->segments.back().count++;
            if (!computes(i)) continue;
            const Output output = output_of(i);
            for (Written & range : ranges) {
                if (range.begin < output.end && output.begin < range.end) range.after = i + 1;
            }
            for (const auto & [input, range] : inputs[i]) {
                if (ranges[range].after == i + 1) {
                    throw Refusal("node \"" + std::string(tensor(i).name) + "\" overwrites its own indices");
                }
            }
        }
    }

    Buffers & buffers_;
    WeightStore & store_;
    std::unique_ptr<Graph> graph_;
    const Tensor * wire_ = nullptr;
    std::vector<std::pair<uint64_t, uint32_t>> ids_;  // of all tensors on the wire, sorted, and their numbers
    std::vector<uint32_t> slots_;                     // by number on the wire: in the graph's tensors, or none
    std::vector<uint32_t> node_wires_;                // by node: its number on the wire
    std::vector<uint32_t> used_;                      // by slot: the number on the wire; the nodes come first
    std::vector<TensorRange> ranges_;                 // by slot
    std::vector<bool> computes_;                      // by node
    std::vector<bool> needed_;                        // by slot: its data is read or written
    std::unordered_map<Weight *, WeightUse> uses_;
    std::unordered_map<const ggml_tensor *, Buffer::Held> weight_of_;
};

}  // namespace

std::unique_ptr<Graph> read_graph(const uint8_t * payload, size_t size, Buffers & buffers, WeightStore & store) {
    return GraphReader(buffers, store).read(payload, size);
}

}  // namespace droid::rpc
