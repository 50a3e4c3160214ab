// Attention of one step of a search: each slot to the rows of its own history, or to those of its source.

#include "parallel.h"
#include "softmax_kernels.h"
#include "xla/ffi/api/ffi.h"

namespace raylingvo {
namespace {

namespace ffi = xla::ffi;

// A task has at least so many multiplications: fewer are done before another thread wakes up.
constexpr int64_t kLeastTask = int64_t{1} << 16;

ffi::Error HypAttention(ffi::ThreadPool pool, ffi::BufferR3<ffi::F32> query, ffi::BufferR4<ffi::F32> keys,
                        ffi::BufferR4<ffi::F32> values, ffi::BufferR1<ffi::S32> lengths, ffi::BufferR2<ffi::S32> slots,
                        ffi::ResultBufferR3<ffi::F32> context, ffi::ResultBufferR2<ffi::F32> probs,
                        int64_t max_width) {
  const SoftmaxKernels& kernels = PickSoftmaxKernels(max_width);
  const auto q = query.dimensions(), k = keys.dimensions();
  const bool has_slots = slots.dimensions()[0] > 0;
  const HypAttentionArrays arrays{q[0],
                                  q[1],
                                  q[2],
                                  k[0],
                                  k[1],
                                  k[2],
                                  query.typed_data(),
                                  keys.typed_data(),
                                  values.typed_data(),
                                  lengths.typed_data(),
                                  has_slots ? slots.typed_data() : nullptr,
                                  context->typed_data(),
                                  probs->typed_data()};
  if (arrays.N == 0 || arrays.T == 0) return ffi::Error::Success();
  int64_t rows = 0;
  for (int64_t n = 0; n < arrays.N; ++n) rows += arrays.lengths[n];
  const int64_t work = std::max<int64_t>(1, 2 * rows * arrays.H * arrays.K / arrays.N);  // of a slot
  // Without slots the hyps of a source follow each other: they read the same rows.
  const int64_t groups = has_slots ? arrays.N : arrays.M, in_group = arrays.N / groups;
  const int64_t at_once = std::max<int64_t>(1, kLeastTask / (work * in_group));
  ParallelFor(pool, (groups + at_once - 1) / at_once, [&](int64_t task) {
    static thread_local std::vector<float> scratch;
    for (int64_t group = task * at_once; group < std::min(groups, (task + 1) * at_once); ++group) {
      for (int64_t i = 0; i < in_group; ++i) kernels.attend(arrays, i * groups + group, scratch);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoHypAttention(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoHypAttention, raylingvo::HypAttention,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<xla::ffi::BufferR3<xla::ffi::F32>>()   // query
                                  .Arg<xla::ffi::BufferR4<xla::ffi::F32>>()   // keys
                                  .Arg<xla::ffi::BufferR4<xla::ffi::F32>>()   // values
                                  .Arg<xla::ffi::BufferR1<xla::ffi::S32>>()   // lengths
                                  .Arg<xla::ffi::BufferR2<xla::ffi::S32>>()   // slots, or of size 0
                                  .Ret<xla::ffi::BufferR3<xla::ffi::F32>>()   // context
                                  .Ret<xla::ffi::BufferR2<xla::ffi::F32>>()   // probs
                                  .Attr<int64_t>("max_width"));
