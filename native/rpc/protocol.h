#pragma once

#include <cstddef>
#include <cstdint>

#include "ggml.h"

// ggml's RPC protocol 7 as it is on the wire, and the extension that two ends of this package agree on. All integers
// are little-endian, all structs packed.
//
//   request   command u8 | size u64 | payload
//   answer    size u64 | payload          (only for the commands that say so)
//
// The first request is HELLO. Requests are carried out, and answered, in the order they were sent.
namespace droid::rpc {

constexpr uint8_t protocol_major = 7;
constexpr uint8_t protocol_minor = 0;
constexpr uint8_t protocol_patch = 0;

enum class Command : uint8_t {
    alloc_buffer = 0,        // AllocBufferRequest -> AllocBufferAnswer
    get_alignment = 1,       // DeviceRequest -> u64
    get_max_size = 2,        // DeviceRequest -> u64
    buffer_get_base = 3,     // BufferRequest -> u64
    free_buffer = 4,         // BufferRequest
    buffer_clear = 5,        // BufferClearRequest
    set_tensor = 6,          // Tensor | cache flag u8 | offset u64 | data
    set_tensor_hash = 7,     // SetTensorHashRequest -> u8: 1 when the worker had the data
    get_tensor = 8,          // GetTensorRequest -> data
    copy_tensor = 9,         // CopyTensorRequest -> u8
    graph_compute = 10,      // device u32 | n_nodes u32 | node ids u64[] | n_tensors u32 | Tensor[]
    get_device_memory = 11,  // DeviceRequest -> DeviceMemoryAnswer
    init_tensor = 12,        // Tensor
    get_alloc_size = 13,     // GetAllocSizeRequest -> u64
    hello = 14,              // Capabilities -> HelloAnswer
    device_count = 15,       // (empty) -> u32
    graph_recompute = 16,    // DeviceRequest: the graph that was sent last
    memset_tensor = 17,      // MemsetTensorRequest

    // The extension; only after both ends have said so in their capabilities.
    write = 128,       // (WriteRequest | data)[]: data into buffers, all inputs of a graph in one message
    read = 129,        // ReadRequest -> microseconds computed for this client so far u64 | data
    offer = 130,       // Offer[]: weights the master is about to place -> u8[]: 1 where the worker has them
    put_weight = 131,  // WeightRequest | data: a whole tensor of weights, which the worker keeps under its hash
    use_weight = 132,  // WeightRequest: the same for data that the answer to an offer said to be there

    // From level 1 of the extension on.
    update = 133,        // (UpdateRequest | encoded data)[]: a write, each part in the form that is shortest
    read_half = 134,     // ReadRequest -> microseconds as above u64 | exponent i32 | the floats there as f16[]
    packed_graph = 135,  // size u64 | the payload of a graph_compute, of that size, packed (packing.h)
};

// For messages; "unknown" for a number that is no command.
const char * command_name(uint8_t command);

// Whether it makes the worker compute a graph.
constexpr bool computes(Command command) {
    return command == Command::graph_compute || command == Command::graph_recompute || command == Command::packed_graph;
}

// Upstream sends a tensor's data under this size without asking for its hash first (and then never caches it).
constexpr uint64_t hash_threshold = 10 * 1024 * 1024;

// FNV-1a 64, the hash of SET_TENSOR_HASH. Not collision-proof.
uint64_t fnv1a(const void * data, size_t size);

#pragma pack(push, 1)

struct Tensor {
    uint64_t id;  // the sender's name for it, unique in a message; 0 is no tensor
    uint32_t type;
    uint64_t buffer;  // the worker's handle; 0: not in a buffer of the worker
    uint32_t ne[GGML_MAX_DIMS];
    uint32_t nb[GGML_MAX_DIMS];
    uint32_t op;
    int32_t op_params[GGML_MAX_OP_PARAMS / sizeof(int32_t)];
    int32_t flags;
    uint64_t src[GGML_MAX_SRC];  // ids
    uint64_t view_src;           // id
    uint64_t view_offs;
    uint64_t data;  // address: the buffer's base plus an offset
    char name[GGML_MAX_NAME];
    int32_t use_count;
};
static_assert(sizeof(Tensor) == 296 && GGML_MAX_DIMS == 4 && GGML_MAX_SRC == 10 && GGML_MAX_NAME == 64,
              "the wire format of protocol 7");

// In HELLO and its answer. Upstream fills it when both ends speak RDMA, whose first field is a queue pair number; ours
// leaves that 0, so that an upstream peer takes it for "TCP only".
struct Capabilities {
    uint32_t rdma_queue_pair;
    char magic[4];          // extension_magic, else there is no extension
    uint8_t version;        // extension_version; ends with different ones speak plain protocol 7
    uint8_t status;         // of an answer: HelloStatus; anything but ok is followed by a hang-up
    uint8_t holds_weights;  // of an answer: 1 when an offer may find something
    uint8_t level;          // the highest the client knows; of an answer: the one to use, which is not above it
    uint8_t padding[12];
};
static_assert(sizeof(Capabilities) == 24, "RPC_CONN_CAPS_SIZE");

constexpr char extension_magic[4] = {'d', 'r', 'd', 'l'};
constexpr uint8_t extension_version = 1;
// A higher level has more commands, and those of all levels below. Ends from before there were levels say 0.
constexpr uint8_t extension_level = 1;

enum class HelloStatus : uint8_t { ok = 0, busy = 1, shutting_down = 2 };

struct HelloAnswer {
    uint8_t major;
    uint8_t minor;
    uint8_t patch;
    uint8_t padding;
    Capabilities capabilities;
};

struct DeviceRequest {
    uint32_t device;
};

struct BufferRequest {
    uint64_t buffer;
};

struct AllocBufferRequest {
    uint32_t device;
    uint64_t size;
};

struct AllocBufferAnswer {
    uint64_t buffer;  // 0: out of memory
    uint64_t size;
};

struct BufferClearRequest {
    uint64_t buffer;
    uint8_t value;
};

struct SetTensorHeader {
    Tensor tensor;
    uint8_t cache;  // 1: keep the data in the cache
    uint64_t offset;
};

struct SetTensorHashRequest {
    Tensor tensor;
    uint64_t offset;
    uint64_t hash;
};

struct GetTensorRequest {
    Tensor tensor;
    uint64_t offset;
    uint64_t size;
};

struct CopyTensorRequest {
    Tensor src;
    Tensor dst;
};

struct MemsetTensorRequest {
    Tensor tensor;
    uint64_t offset;
    uint64_t size;
    uint8_t value;
};

struct GetAllocSizeRequest {
    uint32_t device;
    Tensor tensor;
    Tensor srcs[GGML_MAX_SRC];  // id 0 where there is none
};

struct DeviceMemoryAnswer {
    uint64_t free;
    uint64_t total;
};

struct WriteRequest {
    uint64_t buffer;
    uint64_t offset;  // from the buffer's base
    uint64_t size;
};

enum class Form : uint8_t {
    plain = 0,   // as it is
    packed = 1,  // see packing.h
    half = 2,    // floats as f16, see half.h
};

struct UpdateRequest {
    uint64_t buffer;
    uint64_t offset;        // from the buffer's base
    uint32_t size;          // there
    uint32_t encoded_size;  // of the bytes that follow; at most max_packed_update of packed ones
    uint8_t form;           // Form
    uint8_t exponent;       // of halves: from 0 to max_half_exponent; else 0
};

struct ReadRequest {
    uint64_t buffer;
    uint64_t offset;
    uint64_t size;
};

// Of read_half, before the halves.
struct HalfAnswer {
    uint64_t compute_us;
    int32_t exponent;
};

struct Offer {
    uint8_t sha256[32];
    uint64_t size;
};

struct WeightRequest {
    Tensor tensor;
    uint8_t sha256[32];  // of put_weight, all zeros: the worker hashes what it gets
};

// In place of an answer, or unasked: why the worker is about to hang up. Follows an answer size of notice_size.
struct Notice {
    uint32_t reason;     // NoticeReason
    uint32_t text_size;  // bytes of UTF-8 that follow, at most notice_text_limit
};

#pragma pack(pop)

constexpr uint64_t notice_size = ~0ull;
constexpr uint32_t notice_text_limit = 1024;

enum class NoticeReason : uint32_t { refused = 1, out_of_memory = 2, shutting_down = 3 };

// Bounds on what one message may hold; a peer that exceeds them is no honest one.
constexpr uint32_t max_graph_nodes = 1u << 17;
constexpr uint32_t max_graph_tensors = 1u << 18;
constexpr uint32_t max_offers = 1u << 17;
constexpr uint32_t max_packed_update = 1u << 20;

}  // namespace droid::rpc
