// Matrix product on one core, compiled for several instruction sets; one of them is picked when it runs.

#ifndef RAYLINGVO_OPS_CSRC_PRODUCT_KERNELS_H_
#define RAYLINGVO_OPS_CSRC_PRODUCT_KERNELS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "levels.h"

namespace raylingvo {

// result[m, n] = sum over k of left[m, k] * right[k, n], of M x K x N floats; K > 0. Element (i, j) of a matrix lies at
// i * row + j * column; neighbours in a row of the result are neighbours in memory.
struct Product {
  int64_t M, N, K;
  const float* left;
  int64_t left_row, left_column;
  const float* right;
  int64_t right_row, right_column;
  float* result;
  int64_t result_row;
};

struct ProductKernels {
  int64_t rows, columns;  // of the result, that registers sum up at once

  // Computes it, with `scratch` as room for copies. Each sum is over k in order, in blocks that depend on K only.
  void (*multiply)(const Product& product, std::vector<float>& scratch);
};

}  // namespace raylingvo

#define RAYLINGVO_KERNELS "product_kernels.inc"
#include "each_level.inc"

namespace raylingvo {

// The best for the running machine, with registers of at most max_width floats.
inline const ProductKernels& PickProductKernels(int64_t max_width) {
  return RAYLINGVO_PICK_LEVEL(kProductKernels, max_width);
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_PRODUCT_KERNELS_H_
