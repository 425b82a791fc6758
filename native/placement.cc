#include "placement.h"

#include <set>

#include "llama-model.h"
#include "model_info.h"

namespace droid {

std::vector<DevicePlacement> read_placement(const llama_model * model,
                                            const std::vector<ggml_backend_dev_t> & devices) {
    std::vector<DevicePlacement> placement(devices.size() + 1);
    const auto index_of = [&](const ggml_tensor * tensor) -> size_t {
        ggml_backend_dev_t device = ggml_backend_buft_get_device(ggml_backend_buffer_get_type(tensor->buffer));
        for (size_t i = 0; i < devices.size(); i++) {
            if (devices[i] == device) return i + 1;
        }
        return 0;
    };
    std::set<const ggml_tensor *> counted;
    std::vector<std::set<int>> layers(placement.size());
    for (const auto & [name, tensor] : llama_internal_get_tensor_map(model)) {
        if (!tensor->buffer || !counted.insert(tensor).second) continue;
        const size_t index = index_of(tensor);
        placement[index].bytes += ggml_nbytes(tensor);
        const int layer = layer_of(name);
        if (layer >= 0) layers[index].insert(layer);
    }
    for (size_t i = 0; i < placement.size(); i++) {
        placement[i].layers.assign(layers[i].begin(), layers[i].end());
    }
    const ggml_tensor * head = model->output ? model->output : model->output_norm;
    placement[head && head->buffer ? index_of(head) : 0].head = true;
    return placement;
}

}  // namespace droid
