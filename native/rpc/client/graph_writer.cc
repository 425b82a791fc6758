#include "rpc/client/graph_writer.h"

#include <cstring>
#include <string>
#include <unordered_map>

#include "errors.h"
#include "ggml-impl.h"

namespace droid::rpc {

namespace {

class GraphWriter {
  public:
    GraphWriter(const ggml_cgraph & graph, const BufferHandle & buffer_of) : graph_(graph), buffer_of_(buffer_of) {
        ids_.reserve(2 * static_cast<size_t>(graph.n_nodes));
        tensors_.reserve(2 * static_cast<size_t>(graph.n_nodes));
        // All nodes first, so that a source that is one is known as such, wherever it stands.
        for (int i = 0; i < graph.n_nodes; i++) add(*graph.nodes[i]);
        const size_t nodes = tensors_.size();
        for (size_t i = 0; i < nodes; i++) {
            const ggml_tensor & node = *tensors_[i];
            for (const ggml_tensor * source : node.src) {
                if (source) add(*source);
            }
            if (node.view_src) add(*node.view_src);
        }
        // Views of views are views of the first one in ggml; nothing is deeper, but nothing says so either.
        for (size_t i = nodes; i < tensors_.size(); i++) {
            if (tensors_[i]->view_src) add(*tensors_[i]->view_src);
        }
        nodes_ = nodes;
    }

    void write(std::vector<uint8_t> & payload) const {
        if (static_cast<uint32_t>(graph_.n_nodes) > max_graph_nodes || tensors_.size() > max_graph_tensors) {
            throw CodedError("DROID_INVALID_ARGUMENT", "A graph of " + std::to_string(graph_.n_nodes) + " nodes and " +
                                                           std::to_string(tensors_.size()) +
                                                           " tensors is larger than a worker takes.");
        }
        const uint32_t device = 0;
        const auto n_nodes = static_cast<uint32_t>(graph_.n_nodes);
        const auto n_tensors = static_cast<uint32_t>(tensors_.size());
        payload.resize(3 * sizeof(uint32_t) + n_nodes * sizeof(uint64_t) + n_tensors * sizeof(Tensor));
        uint8_t * out = payload.data();
        const auto put = [&out](const void * data, size_t size) {
            std::memcpy(out, data, size);
            out += size;
        };
        put(&device, sizeof device);
        put(&n_nodes, sizeof n_nodes);
        for (uint32_t i = 0; i < n_nodes; i++) {
            const uint64_t id = id_of(graph_.nodes[i]);
            put(&id, sizeof id);
        }
        put(&n_tensors, sizeof n_tensors);
        for (size_t i = 0; i < tensors_.size(); i++) {
            const Tensor tensor = wire(*tensors_[i], i < nodes_);
            put(&tensor, sizeof tensor);
        }
    }

  private:
    void add(const ggml_tensor & tensor) {
        if (ids_.emplace(&tensor, tensors_.size() + 1).second) tensors_.push_back(&tensor);
    }

    uint64_t id_of(const ggml_tensor * tensor) const { return tensor ? ids_.at(tensor) : 0; }

    Tensor wire(const ggml_tensor & tensor, bool node) const {
        Tensor result = to_wire(tensor, buffer_of_(tensor));
        result.id = id_of(&tensor);
        result.view_src = id_of(tensor.view_src);
        result.view_offs = tensor.view_offs;
        if (node) {
            for (int i = 0; i < GGML_MAX_SRC; i++) result.src[i] = id_of(tensor.src[i]);
        } else {
            result.op = GGML_OP_NONE;
        }
        // The worker's CPU backend fuses nodes that have one use.
        if (graph_.visited_hash_set.size > 0) {
            const size_t slot = ggml_hash_find(&graph_.visited_hash_set, &tensor);
            if (slot != GGML_HASHSET_FULL && ggml_bitset_get(graph_.visited_hash_set.used, slot)) {
                result.use_count = graph_.use_counts[slot];
            }
        }
        return result;
    }

    const ggml_cgraph & graph_;
    const BufferHandle & buffer_of_;
    std::vector<const ggml_tensor *> tensors_;
    std::unordered_map<const ggml_tensor *, uint64_t> ids_;
    size_t nodes_ = 0;
};

}  // namespace

Tensor to_wire(const ggml_tensor & tensor, uint64_t buffer) {
    Tensor result = {};
    result.id = 1;
    result.type = static_cast<uint32_t>(tensor.type);
    result.buffer = buffer;
    result.data = buffer != 0 ? reinterpret_cast<uintptr_t>(tensor.data) : 0;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        // The stride of a dimension of one element is never used.
        if (tensor.ne[i] > UINT32_MAX || (tensor.nb[i] > UINT32_MAX && tensor.ne[i] > 1)) {
            throw CodedError("DROID_INVALID_ARGUMENT",
                             std::string("The tensor ") + tensor.name + " is too large for the RPC protocol.");
        }
        result.ne[i] = static_cast<uint32_t>(tensor.ne[i]);
        result.nb[i] = static_cast<uint32_t>(tensor.nb[i]);
    }
    result.op = static_cast<uint32_t>(tensor.op);
    std::memcpy(result.op_params, tensor.op_params, sizeof result.op_params);
    result.flags = tensor.flags;
    std::memcpy(result.name, tensor.name, strnlen(tensor.name, sizeof result.name - 1));
    return result;
}

void write_graph(const ggml_cgraph & graph, const BufferHandle & buffer_of, std::vector<uint8_t> & payload) {
    GraphWriter(graph, buffer_of).write(payload);
}

}  // namespace droid::rpc
