#include "rpc/server/tensor_check.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <string>

#include "rpc/server/refusal.h"

namespace droid::rpc {

namespace {

constexpr int32_t known_flags = GGML_TENSOR_FLAG_INPUT | GGML_TENSOR_FLAG_OUTPUT | GGML_TENSOR_FLAG_PARAM |
                                GGML_TENSOR_FLAG_LOSS | GGML_TENSOR_FLAG_COMPUTE;

// The largest power of two, up to 8, that divides the size of the type: every address that ggml computes for it has it.
uint64_t alignment_of(ggml_type type) {
    const uint64_t size = ggml_type_size(type);
    return std::min<uint64_t>(size & (~size + 1), 8);
}

Refusal refused(const ggml_tensor & tensor, const std::string & why) {
    return Refusal("tensor \"" + std::string(tensor.name) + "\" " + why);
}

// A stride on the wire has 32 bits. The ones that do not fit are those of contiguous dimensions of large tensors.
void read_strides(const Tensor & wire, ggml_tensor & tensor) {
    const uint64_t block = ggml_blck_size(tensor.type);
    uint64_t contiguous = ggml_type_size(tensor.type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        const bool truncated = contiguous > UINT32_MAX && static_cast<uint32_t>(contiguous) == wire.nb[i];
        const bool irrelevant = tensor.ne[i] == 1 && wire.nb[i] == 0;
        tensor.nb[i] = truncated || irrelevant ? contiguous : wire.nb[i];
        if (__builtin_mul_overflow(static_cast<uint64_t>(tensor.nb[i]), tensor.ne[i] / (i == 0 ? block : 1),
                                   &contiguous) ||
            contiguous > INT64_MAX) {
            throw refused(tensor, "is too large");
        }
    }
}

uint64_t extent_of(const ggml_tensor & tensor) {
    uint64_t extent = ggml_type_size(tensor.type);
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        const uint64_t steps = tensor.ne[i] / (i == 0 ? ggml_blck_size(tensor.type) : 1) - 1;
        uint64_t bytes = 0;
        if (__builtin_mul_overflow(steps, static_cast<uint64_t>(tensor.nb[i]), &bytes) ||
            __builtin_add_overflow(extent, bytes, &extent) || extent > INT64_MAX) {
            throw refused(tensor, "is too large");
        }
    }
    return extent;
}

}  // namespace

TensorRange read_tensor(const Tensor & wire, ggml_tensor & tensor) {
    tensor = {};
    std::memcpy(tensor.name, wire.name, sizeof tensor.name);
    tensor.name[sizeof tensor.name - 1] = '\0';
    if (wire.type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(wire.type)) == 0 ||
        ggml_type_size(static_cast<ggml_type>(wire.type)) == 0) {
        throw refused(tensor, "has type " + std::to_string(wire.type) + ", which does not exist");
    }
    if (wire.op >= GGML_OP_COUNT) throw refused(tensor, "has op " + std::to_string(wire.op) + ", which does not exist");
    tensor.type = static_cast<ggml_type>(wire.type);
    tensor.op = static_cast<ggml_op>(wire.op);
    std::memcpy(tensor.op_params, wire.op_params, sizeof tensor.op_params);
    tensor.flags = wire.flags & known_flags;

    int64_t elements = 1;
    for (int i = 0; i < GGML_MAX_DIMS; i++) {
        tensor.ne[i] = wire.ne[i];
        if (__builtin_mul_overflow(elements, tensor.ne[i], &elements)) throw refused(tensor, "is too large");
    }
    if (tensor.ne[0] % ggml_blck_size(tensor.type) != 0) throw refused(tensor, "has a row of half a block");
    if (elements == 0) {
        for (int i = 0; i < GGML_MAX_DIMS; i++) tensor.nb[i] = ggml_type_size(tensor.type);
        return {0, 0, 0};
    }

    read_strides(wire, tensor);
    const uint64_t alignment = alignment_of(tensor.type);
    for (const size_t stride : tensor.nb) {
        if (stride == 0 || stride % alignment != 0) throw refused(tensor, "has a stride that its type cannot have");
    }
    if (ggml_is_quantized(tensor.type) && tensor.nb[0] != ggml_type_size(tensor.type)) {
        throw refused(tensor, "has gaps between its blocks");
    }
    if (wire.data % alignment != 0) throw refused(tensor, "is not aligned");
    return {wire.buffer, wire.data, extent_of(tensor)};
}

bool is_whole(const Tensor & wire, const ggml_tensor & tensor) {
    return wire.op == GGML_OP_NONE && wire.view_src == 0 && ggml_nelements(&tensor) > 0 &&
           ggml_is_contiguous(&tensor) && tensor.nb[0] == ggml_type_size(tensor.type);
}

}  // namespace droid::rpc
