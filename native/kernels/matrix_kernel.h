#pragma once

#include <algorithm>
#include <cstdint>

#include "ggml-cpu-impl.h"
#include "ggml-cpu.h"
#include "kernels/multiply.h"
#include "traits.h"

namespace droid::kernels::DROID_LANES {

// What a part of the input takes in the second-level cache, where it waits for the next rows of weights.
constexpr int64_t cached_bytes = 256 << 10;

// Shares of the rows that a thread takes one after the other: a phone's cores differ in speed.
constexpr int64_t chunks_per_thread = 8;

/** What ggml calls for a matrix multiplication whose weights are repacked. */
class MatrixKernelBase : public ggml::cpu::tensor_traits {
  public:
    /** Lays plain weights out for the kernel; `to` has as many bytes. */
    virtual void repack(ggml_tensor & to, const void * from) const = 0;
};

/** The rows of the input in all its dimensions, in tiles of about the same size. */
class InputRows {
  public:
    InputRows(const ggml_tensor & input, const ggml_tensor & output)
        : input_(input),
          output_(output),
          rows_(ggml_nrows(&input)),
          tiles_((rows_ + Lanes::max_tile - 1) / Lanes::max_tile),
          blocks_(input.ne[0] / block_columns) {}

    int64_t rows() const { return rows_; }
    /** In each row. */
    int64_t blocks() const { return blocks_; }
    int64_t tiles() const { return tiles_; }
    /** The first row of a tile; of tiles(): the number of rows. */
    int64_t start(int64_t tile) const { return tile * rows_ / tiles_; }

    const float * input(int64_t row) const { return reinterpret_cast<const float *>(at(input_, row)); }
    float * output(int64_t row) const { return reinterpret_cast<float *>(at(output_, row)); }

  private:
    char * at(const ggml_tensor & tensor, int64_t row) const {
        const int64_t plane = row / tensor.ne[1];
        return static_cast<char *>(tensor.data) + row % tensor.ne[1] * tensor.nb[1] +
               plane % tensor.ne[2] * tensor.nb[2] + plane / tensor.ne[2] * tensor.nb[3];
    }

    const ggml_tensor & input_;
    const ggml_tensor & output_;
    const int64_t rows_;
    const int64_t tiles_;
    const int64_t blocks_;
};

template <typename Format>
class MatrixKernel final : public MatrixKernelBase {
  public:
    void repack(ggml_tensor & to, const void * from) const override {
        DROID_LANES::repack<Format>(static_cast<const typename Format::Block *>(from), groups(to), to.ne[1], to.ne[0]);
    }

    bool work_size(int, const ggml_tensor * op, size_t & size) override {
        const ggml_tensor & input = *op->src[1];
        size = static_cast<size_t>(ggml_nrows(&input) * (input.ne[0] / block_columns)) * sizeof(Activations);
        return true;
    }

    bool compute_forward(ggml_compute_params * params, ggml_tensor * op) override {
        const InputRows rows(*op->src[1], *op);
        auto * input = static_cast<Activations *>(params->wdata);
        quantize(*params, rows, input);

        const int64_t groups = op->src[0]->ne[1] / Lanes::rows;
        const int64_t wanted = params->nth == 1 ? 1 : params->nth * chunks_per_thread;
        const int64_t chunk = std::max<int64_t>(1, (groups + wanted - 1) / wanted);
        // Each thread's first chunk has its own number.
        if (params->ith == 0) ggml_threadpool_chunk_set(params->threadpool, params->nth);
        ggml_barrier(params->threadpool);
        for (int64_t i = params->ith; i * chunk < groups; i = ggml_threadpool_chunk_add(params->threadpool, 1)) {
            multiply_groups(*op->src[0], rows, input, i * chunk, std::min(groups, (i + 1) * chunk));
        }
        return true;
    }

  private:
    static typename Format::Group * groups(const ggml_tensor & weights) {
        return static_cast<typename Format::Group *>(weights.data);
    }

    // As ggml's own kernels for these weights quantize their input.
    static void quantize(const ggml_compute_params & params, const InputRows & rows, Activations * to) {
        for (int64_t tile = 0; tile < rows.tiles(); tile++) {
            const int64_t start = rows.start(tile), end = rows.start(tile + 1);
            for (int64_t row = start; row < end; row++) {
                if (row % params.nth != params.ith) continue;
                quantize_row(rows.input(row), rows.blocks(), to + start * rows.blocks() + (row - start), end - start);
            }
        }
    }

    static void quantize_row(const float * from, int64_t blocks, Activations * to, int64_t stride) {
        const ggml_from_float_t from_float = ggml_get_type_traits_cpu(GGML_TYPE_Q8_0)->from_float;
        constexpr int64_t at_once = 32;
        block_q8_0 quantized[at_once];
        for (int64_t first = 0; first < blocks; first += at_once) {
            const int64_t count = std::min(at_once, blocks - first);
            from_float(from + first * block_columns, quantized, count * block_columns);
            for (int64_t i = 0; i < count; i++, to += stride) {
                to->scale = ggml_fp16_to_fp32(quantized[i].d);
                std::memcpy(to->values, quantized[i].qs, sizeof to->values);
                int32_t sum = 0;
                for (const int8_t value : to->values) sum += value;
                to->bias = -Format::offset * sum;
            }
        }
    }

    static void multiply_groups(const ggml_tensor & weights, const InputRows & rows, const Activations * input,
                                int64_t begin, int64_t end) {
        const int64_t tile_bytes = Lanes::max_tile * rows.blocks() * static_cast<int64_t>(sizeof(Activations));
        const int64_t tiles = std::max<int64_t>(1, cached_bytes / std::max<int64_t>(1, tile_bytes));
        for (int64_t first = 0; first < rows.tiles(); first += tiles) {
            const int64_t last = std::min(rows.tiles(), first + tiles);
            for (int64_t group = begin; group < end; group++) {
                for (int64_t tile = first; tile < last; tile++) {
                    multiply_tile(groups(weights) + group * rows.blocks(), rows, input, tile, group * Lanes::rows);
                }
            }
        }
    }

    static void multiply_tile(const typename Format::Group * weights, const InputRows & rows, const Activations * input,
                              int64_t tile, int64_t column) {
        const int64_t start = rows.start(tile);
        const auto count = static_cast<int>(rows.start(tile + 1) - start);
        float * out[Lanes::max_tile];
        for (int i = 0; i < count; i++) out[i] = rows.output(start + i) + column;
        multiply<Format>(weights, input + start * rows.blocks(), count, rows.blocks(), out);
    }
};

}  // namespace droid::kernels::DROID_LANES
