#pragma once

#include <cstdint>

#include "ggml.h"
#include "rpc/protocol.h"

namespace droid::rpc {

// The bytes of a wire tensor that lie in one of the client's buffers.
struct TensorRange {
    uint64_t buffer;   // handle
    uint64_t address;  // of the first byte
    uint64_t size;     // to the end of the last element; 0 for a tensor without elements
};

// Fills everything of a ggml_tensor that is in the message itself: type, ne, nb, op, op_params, flags and name. Its
// pointers are null, also the sources and the view's source.
// Throws Refusal unless the type is one of ggml's with data; the number of elements and the bytes from the first to the
// end of the last element fit into an int64; ne[0] is a multiple of the block size; no stride is 0 or less aligned than
// the type, and nb[0] is the type's size where it is quantized; the address is aligned for the type; op is one of
// ggml's. A tensor may be without elements, as in the graphs of recurrent models; its strides and address mean nothing.
TensorRange read_tensor(const Tensor & wire, ggml_tensor & tensor);

// Whether it is all of a tensor that owns its data, as the weights of a model do: contiguous, no view, computed by
// nothing.
bool is_whole(const Tensor & wire, const ggml_tensor & tensor);

}  // namespace droid::rpc
