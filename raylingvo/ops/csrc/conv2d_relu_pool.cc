// 2-D convolution, ReLU and 2x2 max-pooling as one, and its gradients; float32, NHWC and HWIO, stride 1.
//
// Of the 4 outputs in a pooling window only the largest gets a gradient, and none if it is not positive. Where they are
// is kept in 4 bits, and the gradients add up what is not zero: at most a quarter of the products of a convolution's,
// ties aside.

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
using Bits = ffi::Buffer<ffi::U8, 4>;

Images PooledImagesOf(const Floats& buffer) {
  const auto d = buffer.dimensions();
  return {buffer.typed_data(), d[0], d[1], d[2], d[3]};
}

Reading PooledReading(ffi::Span<const int64_t> padding, int64_t KH, int64_t KW, int64_t C) {
  return ForwardReading({1, 1, padding[0], padding[1], 1, 1}, KH, KW, C);
}

ffi::Error PooledForward(ffi::ThreadPool pool, Floats x, Floats kernel, FloatsOut y, ffi::Result<Bits> which,
                         ffi::Span<const int64_t> padding, int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const Images images = PooledImagesOf(x);
  const auto k = kernel.dimensions(), out = y->dimensions();
  const int64_t F = k[3], h = out[1], w = out[2];
  const Reading reading = PooledReading(padding, k[0], k[1], k[2]);
  const PackedMatrix matrix = Pack(kernels, kernel.typed_data(), k[0] * k[1] * k[2], F);
  if (h * w == 0) return ffi::Error::Success();
  const Strips strips = Strips::Of(images.N, 2 * h, reading.SpanW(2 * w, images.C) * images.C + 2 * w * F, 2);
  const int64_t num_strips = images.N * strips.per_image, tasks = std::min(num_strips, kTasks);
  ParallelFor(pool, tasks, [&](int64_t task) {
    Strip strip;
    const int64_t stride = (F + kernels.width - 1) / kernels.width * kernels.width;
    std::vector<float> conv(strips.height * 2 * w * stride);
    std::vector<int64_t> row(strips.height * 2 * w);
    for (size_t i = 0; i < row.size(); ++i) row[i] = i * stride;
    for (int64_t s = ShareStart(task, num_strips, tasks); s < ShareStart(task + 1, num_strips, tasks); ++s) {
      const int64_t n = s / strips.per_image, first = strips.First(s), height = strips.Height(s);
      const Patches patches = strip.Load(images, reading, n, first, height, 2 * w, true);
      kernels.multiply(patches, matrix, row.data(), conv.data());
      const int64_t start = (n * h + first / 2) * w;
      for (int64_t i = 0; i < height / 2 * w; ++i) {
        const int64_t at = (start + i) * F;
        kernels.relu_max(&conv[4 * i * stride], stride, F, y->typed_data() + at, which->typed_data() + at);
      }
    }
  });
  return ffi::Error::Success();
}

// A patch in registers of the kernels' width; what the last one of a tap has too many is computed and not used.
struct Slots {
  std::vector<int64_t> offset;  // in the source
  int64_t per_tap, width;

  static int64_t PerTap(int64_t floats, int64_t width) { return (floats + width - 1) / width; }

  Slots(const ConvKernels& kernels, const Reading& reading, int64_t pitch)
      : per_tap(PerTap(reading.floats_of_tap, kernels.width)), width(kernels.width) {
    for (const Reading::Tap& tap : reading.taps) {
      for (int64_t i = 0; i < per_tap; ++i) offset.push_back(tap.row * pitch + i * width);
    }
  }
  int64_t size() const { return static_cast<int64_t>(offset.size()); }
};

// Ties are rare, and of what is not tied, where it is cannot be predicted: so that is found without branches.
inline bool IsTied(uint8_t bits) { return (bits & (bits - 1)) != 0; }
// The output whose bit is set, if one is.
inline int OutputOf(uint8_t bits) { return (bits >> 1) - (bits >> 3); }
// What each of several outputs gets of a gradient.
inline float ShareOf(uint8_t bits, float grad) {
  return grad / static_cast<float>((bits & 1) + (bits >> 1 & 1) + (bits >> 2 & 1) + (bits >> 3 & 1));
}

ffi::Error PooledKernelGrad(ffi::ThreadPool pool, Floats x, Floats grad, Bits which, FloatsOut kernel,
                            ffi::Span<const int64_t> padding, int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const Images images = PooledImagesOf(x);
  const auto k = kernel->dimensions(), out = grad.dimensions();
  const int64_t F = k[3], h = out[1], w = out[2];
  const Reading reading = PooledReading(padding, k[0], k[1], k[2]);
  const int64_t taps = reading.taps.size();
  const int64_t floats_of_tap = Slots::PerTap(reading.floats_of_tap, kernels.width) * kernels.width;
  const int64_t floats_of_filter = taps * floats_of_tap;
  const int64_t size = F * floats_of_filter;
  const Strips strips = Strips::Of(images.N, 2 * h, reading.SpanW(2 * w, images.C) * images.C, 2);
  const int64_t num_strips = h * w == 0 ? 0 : images.N * strips.per_image;
  const int64_t sums = std::max<int64_t>(1, std::min({num_strips, kTasks, kFloatsOfSums / std::max<int64_t>(1, size)}));
  std::vector<float> sum(sums * size);
  ParallelFor(pool, sums, [&](int64_t task) {
    Strip strip;
    std::vector<Entry> entries(strips.height * 2 * w + 1);  // of one filter, and room for one that is not kept
    for (int64_t s = ShareStart(task, num_strips, sums); s < ShareStart(task + 1, num_strips, sums); ++s) {
      const int64_t n = s / strips.per_image, first = strips.First(s), height = strips.Height(s);
      const Patches patches = strip.Load(images, reading, n, first, height, 2 * w, true);
      const Slots slots(kernels, reading, strip.pitch);
      const int64_t windows = height / 2 * w, start = (n * h + first / 2) * w * F;
      for (int64_t f = 0; f < F; ++f) {
        const float* g = grad.typed_data() + start + f;
        const uint8_t* bits = which.typed_data() + start + f;
        int64_t count = 0;
        for (int64_t i = 0; i < windows; ++i) {
          const uint8_t b = bits[i * F];
          const float value = g[i * F];
          const int64_t* pixel = patches.pixel + 4 * i;
          if (IsTied(b)) {
            if (value == 0) continue;
            for (int j = 0; j < 4; ++j) {
              if (b >> j & 1) entries[count++] = {static_cast<int32_t>(pixel[j]), ShareOf(b, value)};
            }
          } else {
            entries[count] = {static_cast<int32_t>(pixel[OutputOf(b)]), value};
            count += (b != 0) & (value != 0);
          }
        }
        kernels.add_scaled(patches.source, {entries.data(), count}, slots.offset.data(), slots.size(),
                           &sum[task * size + f * floats_of_filter]);
      }
    }
  });
  ParallelFor(pool, F, [&](int64_t f) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      for (int64_t i = 0; i < reading.floats_of_tap; ++i) {
        float total = 0;
        for (int64_t s = 0; s < sums; ++s) total += sum[s * size + f * floats_of_filter + tap * floats_of_tap + i];
        kernel->typed_data()[(tap * reading.floats_of_tap + i) * F + f] = total;
      }
    }
  });
  return ffi::Error::Success();
}

// The kernel as [F, slots * width], zeros where a slot is not full.
std::vector<float> FiltersInSlots(const Floats& kernel, const Slots& slots) {
  const auto k = kernel.dimensions();
  const int64_t F = k[3], floats_of_tap = k[1] * k[2];
  std::vector<float> filters(F * slots.size() * slots.width);
  for (int64_t tap = 0; tap < k[0]; ++tap) {
    for (int64_t i = 0; i < floats_of_tap; ++i) {
      const float* from = kernel.typed_data() + (tap * floats_of_tap + i) * F;
      for (int64_t f = 0; f < F; ++f) {
        filters[(f * slots.size() + tap * slots.per_tap) * slots.width + i] = from[f];
      }
    }
  }
  return filters;
}

// Strips of input rows are summed up apart, each with the rows above and below that the same pixels reach.
ffi::Error PooledInputGrad(ffi::ThreadPool pool, Floats grad, Floats kernel, Bits which, FloatsOut x,
                           ffi::Span<const int64_t> padding, int64_t max_width) {
  const ConvKernels& kernels = PickConvKernels(max_width);
  const auto k = kernel.dimensions(), out = grad.dimensions(), in = x->dimensions();
  const int64_t KH = k[0], C = k[2], F = k[3], N = in[0], H = in[1], W = in[2], h = out[1], w = out[2];
  const int64_t top = padding[0], left = padding[1];
  const Reading reading = PooledReading(padding, KH, k[1], C);
  const int64_t columns = reading.SpanW(2 * w, C);
  // Slots of different taps must not overlap, even where the last of a tap is not full.
  const int64_t tap_floats = Slots::PerTap(reading.floats_of_tap, kernels.width) * kernels.width;
  const int64_t pitch = std::max(columns * C, tap_floats);
  const Slots slots(kernels, reading, pitch);
  const std::vector<float> filters = FiltersInSlots(kernel, slots);
  const int64_t floats_of_filter = slots.size() * slots.width;
  const Strips strips = Strips::Of(N, H, pitch, 1);
  const int64_t num_strips = N * strips.per_image, tasks = std::min(num_strips, kTasks);
  // The slots whose weights stay in a core's cache while pixels pass by.
  const int64_t slots_at_once = std::max<int64_t>(8, (int64_t{1} << 12) / (F * slots.width) / 8 * 8);
  ParallelFor(pool, tasks, [&](int64_t task) {
    std::vector<float> sum((strips.height + 2 * KH - 2) * pitch + tap_floats + kTail);
    std::vector<int64_t> pixel, end;  // where it is in sum; the end of its entries
    std::vector<Entry> entries, of_window(4 * (F + 1));
    for (int64_t s = ShareStart(task, num_strips, tasks); s < ShareStart(task + 1, num_strips, tasks); ++s) {
      const int64_t n = s / strips.per_image, first = strips.First(s), height = strips.Height(s);
      // Of pixels that reach the strip.
      const int64_t first_row = first + top - (KH - 1), end_row = first + top + height;
      pixel.clear(), end.clear(), entries.clear();
      const int64_t first_window = std::max<int64_t>(0, first_row) / 2;
      const int64_t end_window = std::min(h, (std::max<int64_t>(0, end_row) + 1) / 2);
      for (int64_t r = first_window; r < end_window; ++r) {
        for (int64_t c = 0; c < w; ++c) {
          const int64_t start = ((n * h + r) * w + c) * F;
          const float* g = grad.typed_data() + start;
          const uint8_t* bits = which.typed_data() + start;
          int64_t count[4] = {0, 0, 0, 0};
          for (int64_t f = 0; f < F; ++f) {
            const int32_t filter = static_cast<int32_t>(f * floats_of_filter);
            const uint8_t b = bits[f];
            if (IsTied(b)) {
              if (g[f] == 0) continue;
              for (int j = 0; j < 4; ++j) {
                if (b >> j & 1) of_window[j * (F + 1) + count[j]++] = {filter, ShareOf(b, g[f])};
              }
            } else {
              const int j = OutputOf(b);
              of_window[j * (F + 1) + count[j]] = {filter, g[f]};
              count[j] += (b != 0) & (g[f] != 0);
            }
          }
          for (int i = 0; i < 4; ++i) {
            const int64_t row = 2 * r + i / 2, column = 2 * c + i % 2;
            if (row < first_row || row >= end_row || count[i] == 0) continue;
            pixel.push_back((row - first_row) * pitch + column * C);
            entries.insert(entries.end(), &of_window[i * (F + 1)], &of_window[i * (F + 1)] + count[i]);
            end.push_back(entries.size());
          }
        }
      }
      std::fill(sum.begin(), sum.end(), 0.0f);
      for (int64_t slot = 0; slot < slots.size(); slot += slots_at_once) {
        const int64_t num_slots = std::min(slots_at_once, slots.size() - slot);
        for (size_t p = 0; p < pixel.size(); ++p) {
          const int64_t begin = p == 0 ? 0 : end[p - 1];
          kernels.scatter_scaled(&sum[pixel[p]], {&entries[begin], end[p] - begin},
                                 filters.data() + slot * slots.width, &slots.offset[slot], num_slots);
        }
      }
      for (int64_t r = 0; r < height; ++r) {
        float* to = x->typed_data() + (n * H + first + r) * W * C;
        const int64_t inside = std::max<int64_t>(0, std::min(W, columns - left)) * C;
        std::copy_n(&sum[(KH - 1 + r) * pitch + left * C], inside, to);
        std::fill_n(to + inside, W * C - inside, 0.0f);
      }
    }
  });
  return ffi::Error::Success();
}

// What both gradients are called with.
auto GradBinding() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<Floats>()
      .Arg<Floats>()
      .Arg<Bits>()
      .Ret<Floats>()
      .Attr<ffi::Span<const int64_t>>("padding")
      .Attr<int64_t>("max_width");
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2dReluPool(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2dReluPoolInputGrad(XLA_FFI_CallFrame*);
extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoConv2dReluPoolKernelGrad(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2dReluPool, raylingvo::PooledForward,
                              xla::ffi::Ffi::Bind()
                                  .Ctx<xla::ffi::ThreadPool>()
                                  .Arg<raylingvo::Floats>()
                                  .Arg<raylingvo::Floats>()
                                  .Ret<raylingvo::Floats>()
                                  .Ret<raylingvo::Bits>()
                                  .Attr<xla::ffi::Span<const int64_t>>("padding")
                                  .Attr<int64_t>("max_width"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2dReluPoolInputGrad, raylingvo::PooledInputGrad, raylingvo::GradBinding());
XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoConv2dReluPoolKernelGrad, raylingvo::PooledKernelGrad, raylingvo::GradBinding());
