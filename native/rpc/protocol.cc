#include "rpc/protocol.h"

namespace droid::rpc {

const char * command_name(uint8_t command) {
    static const char * const upstream[] = {
        "alloc_buffer", "get_alignment",   "get_max_size", "buffer_get_base", "free_buffer",     "buffer_clear",
        "set_tensor",   "set_tensor_hash", "get_tensor",   "copy_tensor",     "graph_compute",   "get_device_memory",
        "init_tensor",  "get_alloc_size",  "hello",        "device_count",    "graph_recompute", "memset_tensor",
    };
    static const char * const extension[] = {"write",      "read",   "offer",     "put_weight",
                                             "use_weight", "update", "read_half", "packed_graph"};
    if (command < sizeof upstream / sizeof *upstream) return upstream[command];
    const unsigned index = command - static_cast<unsigned>(Command::write);
    return index < sizeof extension / sizeof *extension ? extension[index] : "unknown";
}

uint64_t fnv1a(const void * data, size_t size) {
    const auto * bytes = static_cast<const uint8_t *>(data);
    uint64_t hash = 0xcbf29ce484222325ull;
    for (size_t i = 0; i < size; i++) {
        hash ^= bytes[i];
        hash *= 0x100000001b3ull;
    }
    return hash;
}

}  // namespace droid::rpc
