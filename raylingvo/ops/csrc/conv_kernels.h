// The inner loops of the convolutions, compiled for several instruction sets; one of them is picked when they run.

#ifndef RAYLINGVO_OPS_CSRC_CONV_KERNELS_H_
#define RAYLINGVO_OPS_CSRC_CONV_KERNELS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "levels.h"

namespace raylingvo {

// A weight matrix, cut into tiles of columns and padded with zeros, so that a tile is a whole number of registers.
struct PackedMatrix {
  struct Tile {
    int64_t column;       // the first
    int64_t num_columns;  // that count, <= width
    int64_t width;        // of a row in `values`
    int vectors, halves;  // of registers in a row
    int64_t start;        // in `values`
  };
  std::vector<Tile> tiles;
  std::vector<float> values;  // of each tile [rows, width]
};

// Where a product reads its left matrix: element (pixel p, run r, k) is source[pixel[p] + run[r] + k].
struct Patches {
  const float* source;
  const int64_t* pixel;
  int64_t num_pixels;
  const int64_t* run;
  int64_t num_runs;
  int64_t run_len;
};

// What is not zero: what begins at `offset` is to be multiplied with `value`.
struct Entry {
  int32_t offset;
  float value;
};
struct Entries {
  const Entry* entry;
  int64_t size;
};

struct ConvKernels {
  int64_t width;  // floats in a register

  // How to cut a matrix of this many rows and columns; values are zero.
  PackedMatrix (*plan)(int64_t rows, int64_t columns);

  // result[p, :] = patches[p, :] @ matrix, where row p of the result begins at result[row[p]].
  void (*multiply)(const Patches& patches, const PackedMatrix& matrix, const int64_t* row, float* result);

  // sum[r * run_len + k, :] += sum over p of patches[p, r, k] * columns[p, :]. Both matrices are tiles of `width`.
  // The source must be readable for 16 floats behind its last element.
  void (*add_outer)(const Patches& patches, const PackedMatrix::Tile& tile, const float* columns, float* sum);

  // sum[s, 0..width) += sum over entries of value * source[offset + slot[s] + 0..width).
  void (*add_scaled)(const float* source, const Entries& entries, const int64_t* slot, int64_t num_slots, float* sum);

  // target[slot[s] + 0..width) += sum over entries of value * weights[offset + s * width + 0..width). Slots are apart.
  void (*scatter_scaled)(float* target, const Entries& entries, const float* weights, const int64_t* slot,
                         int64_t num_slots);

  // Of 4 rows of n values, stride floats apart: pooled = max(0, their maximum), which = a bit for each that is the
  // maximum, none if that is not positive. NaN counts as larger than any number. stride >= n, a multiple of width.
  void (*relu_max)(const float* rows, int64_t stride, int64_t n, float* pooled, uint8_t* which);
};

}  // namespace raylingvo

#define RAYLINGVO_KERNELS "conv_kernels.inc"
#include "each_level.inc"

namespace raylingvo {

// The best for the running machine, with registers of at most max_width floats.
inline const ConvKernels& PickConvKernels(int64_t max_width) { return RAYLINGVO_PICK_LEVEL(kConvKernels, max_width); }

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_CONV_KERNELS_H_
