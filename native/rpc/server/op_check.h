#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "ggml.h"

// What ggml's CPU kernels take for granted, asked before they run. A kernel trusts its inputs: a wrong shape ends the
// process in an assertion or reads beyond a buffer. The rules here are those of ggml's constructors (ggml.c), of the
// kernels' own assertions (ggml-cpu/) and of ggml_backend_cpu_device_supports_op().
namespace droid::rpc {

// Whether an op may run on a worker at all. Never the custom ones, which call a function pointer out of op_params, nor
// the ones of training, which nobody needs there. Masters ask too, and keep refused ops to themselves.
bool op_allowed(ggml_op op);

// Why the CPU kernels must not be given this node; empty when they may.
//
// The caller has already made sure, for the node and each of its non-null sources, that type is one of ggml's with a
// non-zero block size; ne are >= 1 and their product fits into an int64; ne[0] is a multiple of the block size; strides
// nb are such that every element lies inside of the buffer at data, in overflow-safe arithmetic, and nb[0] is the
// type's size for quantized types; data is aligned for the type. The sources of a CONCAT may have no elements; then
// data is null and the strides are the type's size. Nothing else is known: sources may be missing, of any type and
// shape, overlap each other or the node, and op and op_params are whatever came over the network. A source's extra and
// buffer may be set (repacked weights); those follow ggml's own choice and are not checked here.
std::string check_node(const ggml_tensor & node);

// A source whose values the kernel uses as indices: unless all are in [first, last] it asserts or touches foreign
// memory. Or, when it is of F32, values to sort: std::sort leaves its array when one of them is NaN.
struct IndexInput {
    const ggml_tensor * tensor;  // I32, I64 or F32
    int64_t first;               // not for F32
    int64_t last;
    bool distinct;  // no value twice in a row
};

// Appends the index inputs of a node that check_node() accepted.
void index_inputs(const ggml_tensor & node, std::vector<IndexInput> & inputs);

// Why the values in memory at this moment must not be used; empty when they may.
std::string check_indices(const IndexInput & input);

}  // namespace droid::rpc
