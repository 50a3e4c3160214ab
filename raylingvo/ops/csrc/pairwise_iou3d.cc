// Rotated intersection over union of every box with every other, threads over rows.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "iou3d.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

constexpr int64_t kRowsPerTask = 32;

ffi::Error PairwiseIou3D(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> boxes_a, ffi::Buffer<ffi::F32> boxes_b,
                         ffi::ResultBuffer<ffi::F32> iou) {
  const int64_t n = boxes_a.dimensions()[0], m = boxes_b.dimensions()[0];
  const std::vector<Box3D> columns = Box3D::FromRows(boxes_b.typed_data(), m);
  const float* rows = boxes_a.typed_data();
  float* out = iou->typed_data();
  ParallelFor(pool, (n + kRowsPerTask - 1) / kRowsPerTask, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * kRowsPerTask);
    for (int64_t i = task * kRowsPerTask; i < end; ++i) {
      IouWithBoxes(Box3D::From(rows + 7 * i), columns.data(), m, out + i * m);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoPairwiseIou3D(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoPairwiseIou3D, raylingvo::PairwiseIou3D,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
