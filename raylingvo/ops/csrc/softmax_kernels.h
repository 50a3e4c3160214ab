// What a step of a search exponentiates, compiled for several instruction sets; one of them is picked when it runs.

#ifndef RAYLINGVO_OPS_CSRC_SOFTMAX_KERNELS_H_
#define RAYLINGVO_OPS_CSRC_SOFTMAX_KERNELS_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <vector>

#include "levels.h"

namespace raylingvo {

// N slots; T rows of M columns, each of G heads of K floats; H heads of queries, H / G of them for each of keys.
struct HypAttentionArrays {
  int64_t N, H, K, T, M, G;
  const float* query;      // [N, H, K]
  const float* keys;       // [T, M, G, K]
  const float* values;     // [T, M, G, K]
  const int32_t* lengths;  // [N]
  const int32_t* slots;    // [T, N], the column of each row of a slot; null: slot n reads column n % M
  float* context;          // [N, H, K]
  float* probs;            // [N, T], means over heads
};

struct SoftmaxKernels {
  // Computes slot n, with `scratch` as room for what is between.
  void (*attend)(const HypAttentionArrays& arrays, int64_t n, std::vector<float>& scratch);

  // log(sum(exp(logits))) of `size` of them, of which `largest` is the largest; NaNs are left out.
  float (*log_sum)(const float* logits, int64_t size, float largest);
};

}  // namespace raylingvo

#define RAYLINGVO_KERNELS "softmax_kernels.inc"
#include "each_level.inc"

namespace raylingvo {

// The best for the running machine, with registers of at most max_width floats.
inline const SoftmaxKernels& PickSoftmaxKernels(int64_t max_width) {
  return RAYLINGVO_PICK_LEVEL(kSoftmaxKernels, max_width);
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_SOFTMAX_KERNELS_H_
