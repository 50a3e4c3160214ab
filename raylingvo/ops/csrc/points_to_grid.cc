// Points sorted into the cells of a regular grid, threads over points and over cells.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

constexpr int64_t kPointsPerTask = 4096;
constexpr int64_t kCellsPerTask = 256;

// For every i in [0, n), in tasks of `size`.
template <typename Body>
void InTasks(ffi::ThreadPool& pool, int64_t n, int64_t size, const Body& body) {
  ParallelFor(pool, (n + size - 1) / size, [&](int64_t task) {
    const int64_t end = std::min(n, (task + 1) * size);
    for (int64_t i = task * size; i < end; ++i) body(i);
  });
}

ffi::Error PointsToGrid(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> points, ffi::Buffer<ffi::S32> order,
                        ffi::Buffer<ffi::F32> lower, ffi::Buffer<ffi::F32> width, ffi::ResultBuffer<ffi::F32> cells,
                        ffi::ResultBuffer<ffi::S32> num_points) {
  const int64_t n = points.dimensions()[0], d = points.dimensions()[1];
  const auto shape = cells->dimensions();
  const int64_t num_cells = shape[0] * shape[1] * shape[2], num_per_cell = shape[3];
  const float* point = points.typed_data();
  const float* low = lower.typed_data();
  const float* step = width.typed_data();

  std::vector<int32_t> cell_of(n);
  InTasks(pool, n, kPointsPerTask, [&](int64_t i) {
    int64_t cell = 0;
    for (int axis = 0; axis < 3; ++axis) {
      const float at = std::floor((point[i * d + axis] - low[axis]) / step[axis]);
      // Not for NaN either.
      const bool inside = at >= 0 && at < static_cast<float>(shape[axis]);
      cell = cell < 0 || !inside ? -1 : cell * shape[axis] + static_cast<int64_t>(at);
    }
    cell_of[i] = static_cast<int32_t>(cell);
  });

  // Which points come first in a cell is decided by one thread; what is large is copied by all.
  int32_t* count = num_points->typed_data();
  std::fill(count, count + num_cells, 0);
  std::vector<int32_t> place_of(n, -1);
  for (int64_t visit = 0; visit < n; ++visit) {
    const int32_t i = order.typed_data()[visit], cell = cell_of[i];
    if (cell >= 0 && count[cell] < num_per_cell) place_of[i] = count[cell]++;
  }
  float* out = cells->typed_data();
  InTasks(pool, num_cells, kCellsPerTask, [&](int64_t cell) {
    float* places = out + cell * num_per_cell * d;
    std::fill(places + count[cell] * d, places + num_per_cell * d, 0.0f);
  });
  InTasks(pool, n, kPointsPerTask, [&](int64_t i) {
    if (place_of[i] < 0) return;
    std::copy_n(point + i * d, d, out + (cell_of[i] * num_per_cell + place_of[i]) * d);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoPointsToGrid(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoPointsToGrid, raylingvo::PointsToGrid,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>());
