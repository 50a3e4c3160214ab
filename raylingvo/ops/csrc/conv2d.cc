// 2-D convolution and its gradients, float32, NHWC and HWIO.
//
// All three are products whose left matrix, the patches of the image, is never made: a product reads the K*C floats of
// a patch row where they lie, in a copy of a strip of the image with zeros around it, which stays in the core's cache.

#include <cstdint>
#include <vector>

#include "conv_images.h"
#include "conv_kernels.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace raylingvo {
namespace {

namespace ffi = xla::ffi;

using Floats = ffi::Buffer<ffi::F32, 4>;
using FloatsOut = ffi::Result<Floats>;

Window WindowOf(ffi::Span<const int64_t> w) { return {w[0], w[1], w[2], w[3], w[4], w[5]}; }

Images ImagesOf(const Floats& buffer) {
  const auto d = buffer.dimensions();
  return {buffer.typed_data(), d[0], d[1], d[2], d[3]};
}

// Where an output pixel begins: image * n + row * r + column * c.
struct Layout {
  int64_t first, image, row, column;
};

// result = patches @ matrix, over [N, rows, columns] output pixels.
void Convolve(ffi::ThreadPool& pool, const ConvKernels& kernels, const Images& images, const Reading& reading,
              const PackedMatrix& matrix, int64_t rows, int64_t columns, const Layout& layout, float* result) {
  if (images.N == 0 || rows <= 0 || columns <= 0) return;
  const Strips strips =
      Strips::Of(images.N, rows, reading.SpanW(columns, images.C) * images.C * reading.step_h, 1);
  const int64_t num_strips = images.N * strips.per_image, tasks = std::min(num_strips, kTasks);
  ParallelFor(pool, tasks, [&](int64_t task) {
    Strip strip;
    std::vector<int64_t> to;
    for (int64_t s = ShareStart(task, num_strips, tasks); s < ShareStart(task + 1, num_strips, tasks); ++s) {
      const int64_t n = s / strips.per_image, first = strips.First(s), height = strips.Height(s);
      const Patches patches = strip.Load(images, reading, n, first, height, columns);
      to.clear();
      for (int64_t r = first; r < first + height; ++r) {
        for (int64_t c = 0; c < columns; ++c) {
          to.push_back(layout.first + n * layout.image + r * layout.row + c * layout.column);
        }
      }
      kernels.multiply(patches, matrix, to.data(), result);
    }
  });
}

ffi::Error Forward(ffi::ThreadPool pool, Floats x, Floats kernel, FloatsOut y, ffi::Span<const int64_t> window,
                   int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const Images images = ImagesOf(x);
  const auto k = kernel.dimensions(), out = y->dimensions();
  const Reading reading = ForwardReading(WindowOf(window), k[0], k[1], k[2]);
  const PackedMatrix matrix = Pack(kernels, kernel.typed_data(), k[0] * k[1] * k[2], k[3]);
  Convolve(pool, kernels, images, reading, matrix, out[1], out[2],
           {0, out[1] * out[2] * out[3], out[2] * out[3], out[3]}, y->typed_data());
  return ffi::Error::Success();
}

// Rows (or columns) of the input that are `phase` modulo the stride: input phase + stride * i is reached by tap k from
// output i + shift, if stride divides phase + before - k * dilation = stride * shift.
struct Phase {
  std::vector<int64_t> tap, shift;
  int64_t least = 0;

  Phase(int64_t phase, int64_t stride, int64_t before, int64_t taps, int64_t dilation) {
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t distance = phase + before - k * dilation;
      if (distance % stride != 0) continue;
      tap.push_back(k);
      shift.push_back(distance / stride);
    }
    if (!shift.empty()) least = *std::min_element(shift.begin(), shift.end());
  }
};

// The gradient with respect to the input is, for each phase, a convolution of y's gradient with the taps that reach it.
ffi::Error InputGrad(ffi::ThreadPool pool, Floats grad, Floats kernel, FloatsOut x, ffi::Span<const int64_t> window,
                   int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const Window w = WindowOf(window);
  const Images images = ImagesOf(grad);
  const auto k = kernel.dimensions(), in = x->dimensions();
  const int64_t C = k[2], F = k[3];
  for (int64_t h = 0; h < std::min<int64_t>(w.stride_h, in[1]); ++h) {
    const Phase phase_h(h, w.stride_h, w.top, k[0], w.dilation_h);
    for (int64_t v = 0; v < std::min<int64_t>(w.stride_w, in[2]); ++v) {
      const Phase phase_w(v, w.stride_w, w.left, k[1], w.dilation_w);
      Reading reading{1, 1, -phase_h.least, -phase_w.least, {}, F};
      std::vector<float> transposed;  // [taps, F, C]
      for (size_t i = 0; i < phase_h.tap.size(); ++i) {
        for (size_t j = 0; j < phase_w.tap.size(); ++j) {
          reading.taps.push_back({phase_h.shift[i] - phase_h.least, phase_w.shift[j] - phase_w.least});
          const float* from = kernel.typed_data() + (phase_h.tap[i] * k[1] + phase_w.tap[j]) * C * F;
          for (int64_t f = 0; f < F; ++f) {
            for (int64_t c = 0; c < C; ++c) transposed.push_back(from[c * F + f]);
          }
        }
      }
      const PackedMatrix matrix = Pack(kernels, transposed.data(), transposed.size() / C, C);
      Convolve(pool, kernels, images, reading, matrix, (in[1] - h + w.stride_h - 1) / w.stride_h,
               (in[2] - v + w.stride_w - 1) / w.stride_w,
               {(h * in[2] + v) * C, in[1] * in[2] * C, w.stride_h * in[2] * C, w.stride_w * C}, x->typed_data());
    }
  }
  return ffi::Error::Success();
}

// Each task sums over its share of the strips; then the sums are added up, in order.
ffi::Error KernelGrad(ffi::ThreadPool pool, Floats x, Floats grad, FloatsOut kernel, ffi::Span<const int64_t> window,
                   int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const Images images = ImagesOf(x);
  const auto k = kernel->dimensions(), out = grad.dimensions();
  const int64_t F = k[3], rows = k[0] * k[1] * k[2], Ho = out[1], Wo = out[2];
  const Reading reading = ForwardReading(WindowOf(window), k[0], k[1], k[2]);
  const PackedMatrix plan = kernels.plan(rows, F);
  const int64_t size = plan.values.size();
  // Strips of enough pixels that adding a strip's sum to the total costs little.
  const Strips strips = Strips::Of(images.N, Ho, Wo * std::min<int64_t>(F, 64), 1 + 63 / Wo);
  const int64_t num_strips = images.N * strips.per_image;
  // Few totals if they are large; threads then share the tiles and taps, and each copies all images.
  const int64_t sums =
      std::max<int64_t>(1, std::min({num_strips, kTasks, kFloatsOfSums / std::max<int64_t>(1, size)}));
  const int64_t taps = reading.taps.size(), pieces = taps * plan.tiles.size();
  const int64_t parts = sums >= kTasks / 2 ? 1 : std::min(pieces, kTasks / sums);
  std::vector<float> sum(sums * size);
  ParallelFor(pool, sums * parts, [&](int64_t task) {
    const int64_t share = task / parts, part = task % parts;
    const int64_t first_piece = ShareStart(part, pieces, parts), end_piece = ShareStart(part + 1, pieces, parts);
    Strip strip;
    std::vector<float> columns;
    for (int64_t s = ShareStart(share, num_strips, sums); s < ShareStart(share + 1, num_strips, sums); ++s) {
      const int64_t n = s / strips.per_image, first = strips.First(s), height = strips.Height(s);
      const Patches patches = strip.Load(images, reading, n, first, height, Wo);
      const float* from = grad.typed_data() + (n * Ho + first) * Wo * F;
      for (int64_t piece = first_piece; piece < end_piece;) {
        const PackedMatrix::Tile& tile = plan.tiles[piece / taps];
        const int64_t tap = piece % taps, num_taps = std::min(taps - tap, end_piece - piece);
        columns.assign(patches.num_pixels * tile.width, 0.0f);
        for (int64_t p = 0; p < patches.num_pixels; ++p) {
          std::memcpy(&columns[p * tile.width], from + p * F + tile.column, tile.num_columns * sizeof(float));
        }
        Patches part_of_patches = patches;
        part_of_patches.run += tap;
        part_of_patches.num_runs = num_taps;
        kernels.add_outer(part_of_patches, tile, columns.data(),
                          &sum[share * size + tile.start + tap * reading.floats_of_tap * tile.width]);
        piece += num_taps;
      }
    }
  });
  ParallelFor(pool, std::min(rows, kTasks), [&](int64_t task) {
    const int64_t shares = std::min(rows, kTasks);
    for (int64_t row = ShareStart(task, rows, shares); row < ShareStart(task + 1, rows, shares); ++row) {
      float* to = kernel->typed_data() + row * F;
      for (const PackedMatrix::Tile& tile : plan.tiles) {
        for (int64_t c = 0; c < tile.num_columns; ++c) {
          float total = 0;
          for (int64_t i = 0; i < sums; ++i) total += sum[i * size + tile.start + row * tile.width + c];
          to[tile.column + c] = total;
        }
      }
    }
  });
  return ffi::Error::Success();
}

// What all three are called with.
auto Binding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Ret<Floats>()
      .Attr<ffi::Span<const int64_t>>("window")
      .Attr<int64_t>("max_width");
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2d(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2dInputGrad(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2dKernelGrad(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2d, raylingvo::Forward, raylingvo::Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2dInputGrad, raylingvo::InputGrad, raylingvo::Binding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2dKernelGrad, raylingvo::KernelGrad, raylingvo::Binding());
