// The buffer type of repacked weights: ggml's CPU backend asks for it when it lists its extra buffer types, and is then
// handed every matrix multiplication whose weights are in such a buffer.
#include <algorithm>
#include <cstdint>
#include <vector>
#ifdef __linux__
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "kernels/matrix_kernel.h"
#include "traits.h"

namespace droid::kernels::DROID_LANES {

namespace {

ggml_backend_buffer_type_t buffer_type();

// The kernel for weights of this type, or null where ggml's own are better.
MatrixKernelBase * find_kernel(ggml_type type) {
    // Never destroyed: a process may end while a thread computes.
    static auto * q5_0 = new MatrixKernel<Q5_0>();
    static auto * q8_0 = new MatrixKernel<Q8_0>();
    switch (type) {
        case GGML_TYPE_Q5_0: return Q5_0::fast ? q5_0 : nullptr;
        case GGML_TYPE_Q8_0: return Q8_0::fast ? q8_0 : nullptr;
        default: return nullptr;
    }
}

// Whole groups of rows, one after the other. A view has to start with one, or its rows are not where it says.
bool is_repackable(const ggml_tensor & weights) {
    if (!find_kernel(weights.type) || weights.ne[2] != 1 || weights.ne[3] != 1) return false;
    if (!ggml_is_contiguous(&weights) || weights.ne[1] % Lanes::rows != 0) return false;
    const ggml_tensor * whole = weights.view_src;
    return !whole || (whole->type == weights.type && whole->ne[0] == weights.ne[0] &&
                      weights.view_offs % (Lanes::rows * weights.nb[1]) == 0);
}

bool is_repacked(const ggml_tensor * tensor) {
    return tensor && tensor->buffer && tensor->buffer->buft == buffer_type();
}

struct ExtraBufferType final : ggml::cpu::extra_buffer_type {
    bool supports_op(ggml_backend_dev_t, const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT || !is_repacked(op->src[0]) || !is_repackable(*op->src[0])) return false;
        const ggml_tensor & input = *op->src[1];
        if (input.buffer && !ggml_backend_buft_is_host(input.buffer->buft)) return false;
        return input.type == GGML_TYPE_F32 && input.nb[0] == sizeof(float);
    }

    ggml::cpu::tensor_traits * get_tensor_traits(const ggml_tensor * op) override {
        if (op->op != GGML_OP_MUL_MAT || !is_repacked(op->src[0])) return nullptr;
        return find_kernel(op->src[0]->type);
    }
};

ggml_status init_tensor(ggml_backend_buffer_t, ggml_tensor * tensor) {
    // Not looked at here; it tells others that the tensor's data is repacked.
    tensor->extra = static_cast<ggml::cpu::tensor_traits *>(find_kernel(tensor->type));
    return GGML_STATUS_SUCCESS;
}

void set_tensor(ggml_backend_buffer_t, ggml_tensor * tensor, const void * data, size_t offset, size_t size) {
    GGML_ASSERT(offset == 0 && size == ggml_nbytes(tensor) && "only whole tensors can be repacked");
    GGML_ASSERT(is_repackable(*tensor));
    find_kernel(tensor->type)->repack(*tensor, data);
}

// Filling memory page by page takes longer than repacking, and each token reads all of it. Where the kernel knows no
// huge pages nothing changes.
void advise_huge_pages(void * data, size_t size) {
#ifdef MADV_HUGEPAGE
    const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
    const auto begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const auto end = (reinterpret_cast<uintptr_t>(data) + size) / page * page;
    if (begin < end) madvise(reinterpret_cast<void *>(begin), end - begin, MADV_HUGEPAGE);
#else
    static_cast<void>(data);
    static_cast<void>(size);
#endif
}

ggml_backend_buffer_t alloc_buffer(ggml_backend_buffer_type_t type, size_t size) {
    ggml_backend_buffer_t buffer = ggml_backend_buft_alloc_buffer(ggml_backend_cpu_buffer_type(), size);
    if (!buffer) return nullptr;
    advise_huge_pages(ggml_backend_buffer_get_base(buffer), size);
    buffer->buft = type;
    buffer->iface.init_tensor = init_tensor;
    buffer->iface.set_tensor = set_tensor;
    // Nobody reads weights back, and bytes must not be copied as if they were plain.
    buffer->iface.get_tensor = nullptr;
    buffer->iface.cpy_tensor = nullptr;
    return buffer;
}

ggml_backend_buffer_type_t buffer_type() {
    static ggml::cpu::extra_buffer_type * context = new ExtraBufferType();
    static ggml_backend_buffer_type type = {
        /* iface = */ {
            /* get_name = */ [](ggml_backend_buffer_type_t) { return "CPU_INTERLEAVED"; },
            /* alloc_buffer = */ alloc_buffer,
            /* get_alignment = */
            [](ggml_backend_buffer_type_t) { return ggml_backend_buft_get_alignment(ggml_backend_cpu_buffer_type()); },
            /* get_max_size = */ nullptr,
            /* get_alloc_size = */ nullptr,  // the size of the plain tensor
            /* is_host = */ nullptr,         // no
        },
        /* device = */ ggml_backend_reg_dev_get(ggml_backend_cpu_reg(), 0),
        /* context = */ context,
    };
    return &type;
}

}  // namespace

}  // namespace droid::kernels::DROID_LANES

std::vector<ggml_backend_buffer_type_t> ggml_backend_cpu_extra_sources_buffer_types() {
    using namespace droid::kernels::DROID_LANES;
    if (!Q5_0::fast && !Q8_0::fast) return {};
    return {buffer_type()};
}
