// The few tokens of each row of logits that can matter to a beam search, and their log-probabilities.

#include <algorithm>
#include <cstdint>
#include <limits>
#include <vector>

#include "parallel.h"
#include "softmax_kernels.h"
#include "top_k.h"
#include "xla/ffi/api/ffi.h"

namespace raylingvo {
namespace {

namespace ffi = xla::ffi;

constexpr int64_t kEosPlace = 0;

// Writes row n: EOS first, then the best tokens, by token.
void WriteRow(const float* logits, int64_t V, int64_t capacity, int64_t eos_id, const SoftmaxKernels& kernels,
              float* log_probs, int32_t* tokens) {
  static thread_local std::vector<float> maxima;
  static thread_local std::vector<Entry> storage;
  if (static_cast<int64_t>(maxima.size()) < RoomForMaxima(V)) maxima.resize(RoomForMaxima(V));
  if (static_cast<int64_t>(storage.size()) < 2 * capacity) storage.resize(2 * capacity);
  BestEntries best(storage.data(), capacity);
  OfferBest(logits, 0.0f, 0, V, capacity, maxima.data(), storage.data() + capacity, &best);
  const int64_t found = best.size();
  const float largest = found ? storage[0].g : -std::numeric_limits<float>::infinity();
  const float log_sum = kernels.log_sum(logits, V, largest);
  std::sort(storage.begin(), storage.begin() + found,
            [](const Entry& a, const Entry& b) { return a.token < b.token; });
  log_probs[kEosPlace] = logits[eos_id] - log_sum;
  tokens[kEosPlace] = static_cast<int32_t>(eos_id);
  for (int64_t i = 0; i < capacity; ++i) {
    const bool is_entry = i < found && storage[i].token != eos_id;
    log_probs[i + 1] = is_entry ? storage[i].g - log_sum : std::numeric_limits<float>::quiet_NaN();
    tokens[i + 1] = i < found ? storage[i].token : 0;
  }
}

ffi::Error ShortList(ffi::ThreadPool pool, ffi::BufferR2<ffi::F32> logits, ffi::ResultBufferR2<ffi::F32> log_probs,
                     ffi::ResultBufferR2<ffi::S32> tokens, int64_t eos_id, int64_t max_width) {
  const SoftmaxKernels& kernels = PickSoftmaxKernels(max_width);
  const int64_t N = logits.dimensions()[0], V = logits.dimensions()[1], M = tokens->dimensions()[1];
  ParallelFor(pool, N, [&](int64_t n) {
    WriteRow(logits.typed_data() + n * V, V, M - 1, eos_id, kernels, log_probs->typed_data() + n * M,
             tokens->typed_data() + n * M);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoShortList(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoShortList, raylingvo::ShortList,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::BufferR2<xla::ffi::F32>>()   // logits
                                  .Ret<xla::ffi::BufferR2<xla::ffi::F32>>()   // log_probs
                                  .Ret<xla::ffi::BufferR2<xla::ffi::S32>>()   // tokens
                                  .Attr<int64_t>("eos_id")
                                  .Attr<int64_t>("max_width"));
