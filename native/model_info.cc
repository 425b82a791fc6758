#include "model_info.h"

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <utility>

#include "errors.h"
#include "ggml.h"
#include "gguf.h"
#include "llama-arch.h"
#include "llama.h"

namespace droid {

namespace {

struct GgufFile {
    gguf_context * gguf = nullptr;
    ggml_context * tensors = nullptr;

    explicit GgufFile(const std::string & path) {
        gguf_init_params params = {/*.no_alloc =*/true, /*.ctx =*/&tensors};
        gguf = gguf_init_from_file(path.c_str(), params);
    }
    ~GgufFile() {
        gguf_free(gguf);
        ggml_free(tensors);
    }
    GgufFile(GgufFile && other) noexcept
        : gguf(std::exchange(other.gguf, nullptr)), tensors(std::exchange(other.tensors, nullptr)) {}
    GgufFile & operator=(GgufFile &&) = delete;
};

void check_magic(const std::string & path) {
    std::unique_ptr<FILE, int (*)(FILE *)> file(std::fopen(path.c_str(), "rb"), std::fclose);
    if (!file) {
        throw CodedError("DROID_MODEL_NOT_FOUND", "Cannot open the model " + path + ": " + std::strerror(errno) + ".");
    }
    char magic[4] = {};
    const size_t n = std::fread(magic, 1, sizeof magic, file.get());
    if (n != sizeof magic || std::memcmp(magic, "GGUF", 4) != 0) {
        throw CodedError("DROID_MODEL_INVALID",
                         path +
                             " is not a GGUF file: it does not begin with \"GGUF\". Models in other formats must be "
                             "converted first; a download page saved by mistake also looks like this.");
    }
}

GgufFile open_model(const std::string & path) {
    check_magic(path);
    GgufFile file(path);
    if (!file.gguf) {
        throw CodedError("DROID_MODEL_INVALID",
                         path + " begins like a GGUF file, but its header is damaged or cut off. Download it again.");
    }
    return file;
}

std::string get_string(const gguf_context * gguf, const char * key) {
    const int64_t id = gguf_find_key(gguf, key);
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_STRING ? gguf_get_val_str(gguf, id) : "";
}

// An unsigned integer of any width; fallback when the key is missing or of another type (arrays differ by layer).
uint64_t get_uint(const gguf_context * gguf, const std::string & key, uint64_t fallback) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0) {
        return fallback;
    }
    switch (gguf_get_kv_type(gguf, id)) {
        case GGUF_TYPE_UINT16: return gguf_get_val_u16(gguf, id);
        case GGUF_TYPE_UINT32: return gguf_get_val_u32(gguf, id);
        case GGUF_TYPE_INT32: return static_cast<uint64_t>(std::max(0, gguf_get_val_i32(gguf, id)));
        case GGUF_TYPE_UINT64: return gguf_get_val_u64(gguf, id);
        default: return fallback;
    }
}

template <typename T>
std::vector<uint64_t> widen(const gguf_context * gguf, int64_t id) {
    const T * data = static_cast<const T *>(gguf_get_arr_data(gguf, id));
    std::vector<uint64_t> values;
    for (size_t i = 0; i < gguf_get_arr_n(gguf, id); i++) {
        values.push_back(data[i] > 0 ? static_cast<uint64_t>(data[i]) : 0);
    }
    return values;
}

// What may be one unsigned integer or one for each layer; empty when the key is missing or of another type.
std::vector<uint64_t> get_uints(const gguf_context * gguf, const std::string & key) {
    const int64_t id = gguf_find_key(gguf, key.c_str());
    if (id < 0) return {};
    if (gguf_get_kv_type(gguf, id) != GGUF_TYPE_ARRAY) return {get_uint(gguf, key, 0)};
    switch (gguf_get_arr_type(gguf, id)) {
        case GGUF_TYPE_UINT16: return widen<uint16_t>(gguf, id);
        case GGUF_TYPE_UINT32: return widen<uint32_t>(gguf, id);
        case GGUF_TYPE_INT32: return widen<int32_t>(gguf, id);
        case GGUF_TYPE_UINT64: return widen<uint64_t>(gguf, id);
        case GGUF_TYPE_INT64: return widen<int64_t>(gguf, id);
        default: return {};
    }
}

uint64_t largest(const std::vector<uint64_t> & values) {
    return values.empty() ? 0 : *std::max_element(values.begin(), values.end());
}

// What its metadata says about a mixture of experts; no experts in any other model.
struct Experts {
    uint64_t count = 0;
    std::vector<uint64_t> used;  // by one token; of all layers, or of each

    Experts(const gguf_context * gguf, const std::string & arch)
        : count(get_uint(gguf, arch + ".expert_count", 0)), used(get_uints(gguf, arch + ".expert_used_count")) {}

    uint64_t used_in(size_t layer) const {
        const uint64_t given = used.size() == 1 ? used[0] : layer < used.size() ? used[layer] : 0;
        return given > 0 ? std::min(given, count) : count;
    }

    // Of a tensor in a layer, what one token reads. The experts of a layer are one tensor, its last dimension; shared
    // ones are tensors of their own.
    uint64_t active_bytes(const ggml_tensor & tensor, size_t layer) const {
        const uint64_t bytes = ggml_nbytes(&tensor);
        const std::string name = ggml_get_name(&tensor);
        const bool experts = name.find(".ffn_") != std::string::npos && name.find("_exps.") != std::string::npos;
        const int64_t last = tensor.ne[std::max(ggml_n_dims(&tensor), 1) - 1];
        if (!experts || count == 0 || static_cast<uint64_t>(last) != count) return bytes;
        return bytes / count * used_in(layer);
    }
};

uint64_t feed_forward_length(const gguf_context * gguf, const std::string & arch, const Experts & experts) {
    const uint64_t dense = largest(get_uints(gguf, arch + ".feed_forward_length"));
    if (experts.count == 0) return dense;
    // Without a length of their own, the experts have that of the layer (Mixtral).
    uint64_t each = largest(get_uints(gguf, arch + ".expert_feed_forward_length"));
    if (each == 0) each = dense;
    uint64_t shared = largest(get_uints(gguf, arch + ".expert_shared_feed_forward_length"));
    if (shared == 0) shared = get_uint(gguf, arch + ".expert_shared_count", 0) * each;
    const uint64_t used = std::min(largest(experts.used), experts.count);
    return std::max(dense, used * each + shared);
}

uint64_t token_count(const gguf_context * gguf) {
    const int64_t id = gguf_find_key(gguf, "tokenizer.ggml.tokens");
    return id >= 0 && gguf_get_kv_type(gguf, id) == GGUF_TYPE_ARRAY ? gguf_get_arr_n(gguf, id) : 0;
}

uint64_t kv_bytes(const gguf_context * gguf, const std::string & arch) {
    const std::string attention = arch + ".attention.";
    const uint64_t heads = get_uint(gguf, attention + "head_count", 0);
    const uint64_t kv_heads = get_uint(gguf, attention + "head_count_kv", heads);
    const uint64_t embedding = get_uint(gguf, arch + ".embedding_length", 0);
    if (heads == 0 || kv_heads == 0 || embedding == 0) {
        return 0;
    }
    const uint64_t key = get_uint(gguf, attention + "key_length", embedding / heads);
    const uint64_t value = get_uint(gguf, attention + "value_length", embedding / heads);
    return kv_heads * (key + value) * 2;
}

// The files a split model consists of, in order; just path when it is not split.
std::vector<std::string> split_files(const std::string & path, const gguf_context * gguf) {
    const uint64_t count = get_uint(gguf, "split.count", 0);
    if (count <= 1) {
        return {path};
    }
    const uint64_t first = get_uint(gguf, "split.no", 0);
    std::vector<char> prefix(path.size() + 1);
    if (first != 0 || count > 1024 ||
        llama_split_prefix(prefix.data(), prefix.size(), path.c_str(), 0, static_cast<int>(count)) <= 0) {
        throw CodedError("DROID_MODEL_INVALID", path + " is one of " + std::to_string(count) +
                                                    " files of a split model; give the first one, under its original "
                                                    "name (…-00001-of-…).gguf.");
    }
    std::vector<std::string> files;
    for (uint64_t i = 0; i < count; i++) {
        std::vector<char> name(path.size() + 64);
        llama_split_path(name.data(), name.size(), prefix.data(), static_cast<int>(i), static_cast<int>(count));
        files.emplace_back(name.data());
    }
    return files;
}

// Calls use(path, file) for main and, when the model is split, the files beside it.
template <typename Use>
void for_each_file(const std::string & path, const GgufFile & main, const Use & use) {
    for (const std::string & file : split_files(path, main.gguf)) {
        if (file == path) {
            use(path, main);
            continue;
        }
        check_magic(file);
        const GgufFile other(file);
        if (!other.gguf) throw CodedError("DROID_MODEL_INVALID", file + " is damaged or cut off. Download it again.");
        use(file, other);
    }
}

}  // namespace

int layer_of(const std::string & tensor) {
    for (const char * pattern : {"blk.%d.", "enc.blk.%d.", "dec.blk.%d."}) {
        int layer = -1;
        if (std::sscanf(tensor.c_str(), pattern, &layer) == 1 && layer >= 0) {
            return layer;
        }
    }
    return -1;
}

ModelInfo read_model_info(const std::string & path) {
    const GgufFile main = open_model(path);
    ModelInfo info;
    info.architecture = get_string(main.gguf, "general.architecture");
    info.name = get_string(main.gguf, "general.name");
    const std::string & arch = info.architecture;
    if (arch.empty()) {
        throw CodedError("DROID_MODEL_INVALID", path + " names no architecture (general.architecture is missing).");
    }
    if (llm_arch_from_string(arch) == LLM_ARCH_UNKNOWN) {
        throw CodedError("DROID_MODEL_UNSUPPORTED", "llama.cpp " + std::string(llama_version()) +
                                                        " does not know the architecture \"" + arch + "\" of " + path +
                                                        ". A newer droid-llama may.");
    }
    if (get_string(main.gguf, "general.type") == "mmproj" || arch == "clip") {
        throw CodedError("DROID_MODEL_UNSUPPORTED",
                         path + " is a multimodal projector, not a model; pass it with --mmproj beside its model.");
    }
    const uint64_t layers = get_uint(main.gguf, arch + ".block_count", 0);
    if (layers == 0 || layers > 4096) {
        throw CodedError("DROID_MODEL_INVALID", path + " has no usable " + arch + ".block_count; it holds no layers.");
    }
    info.context_length = static_cast<uint32_t>(get_uint(main.gguf, arch + ".context_length", 0));
    info.kv_bytes_per_token_layer = kv_bytes(main.gguf, arch);
    info.layer_bytes.assign(layers, 0);
    info.active_bytes_per_layer.assign(layers, 0);
    const Experts experts(main.gguf, arch);
    info.embedding_length = get_uint(main.gguf, arch + ".embedding_length", 0);
    info.feed_forward_length = feed_forward_length(main.gguf, arch, experts);
    info.head_count = largest(get_uints(main.gguf, arch + ".attention.head_count"));
    info.vocabulary_size = token_count(main.gguf);

    bool has_output = false;
    uint64_t tied_embedding_bytes = 0;
    for_each_file(path, main, [&](const std::string & file_path, const GgufFile & file) {
        const uint64_t data = gguf_get_data_offset(file.gguf);
        // ggml's list has the order of the file's.
        int64_t index = 0;
        for (ggml_tensor * t = ggml_get_first_tensor(file.tensors); t; t = ggml_get_next_tensor(file.tensors, t)) {
            const std::string name = ggml_get_name(t);
            const int named = layer_of(name);
            const int layer = static_cast<uint64_t>(named) < layers ? named : -1;
            const uint64_t offset = data + gguf_get_tensor_offset(file.gguf, index++);
            info.tensors.push_back({{name, file_path, offset, ggml_nbytes(t)}, layer});
            if (layer >= 0) {
                info.layer_bytes[layer] += ggml_nbytes(t);
                info.active_bytes_per_layer[layer] += experts.active_bytes(*t, static_cast<size_t>(layer));
                continue;
            }
            info.other_bytes += ggml_nbytes(t);
            // The prefixes of everything llama.cpp classes as output layer (LLM_TENSOR_LAYER_OUTPUT).
            if (name.rfind("output", 0) == 0 || name.rfind("cls", 0) == 0) {
                info.head_bytes += ggml_nbytes(t);
                has_output = has_output || name == "output.weight";
            }
            if (name == "token_embd.weight") {
                tied_embedding_bytes = ggml_nbytes(t);
                if (info.vocabulary_size == 0) info.vocabulary_size = static_cast<uint64_t>(t->ne[1]);
            }
        }
    });
    if (!has_output) {
        info.head_bytes += tied_embedding_bytes;
    }
    return info;
}

}  // namespace droid
