// Images cut into strips of rows, copied with zeros around them.

#ifndef RAYLINGVO_OPS_CSRC_CONV_IMAGES_H_
#define RAYLINGVO_OPS_CSRC_CONV_IMAGES_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <vector>

#include "conv_kernels.h"

namespace raylingvo {

constexpr int64_t kTail = 16;  // floats behind a copy that may be read
// Tasks of a loop: enough for threads to share them evenly, and as many on every machine, since the order in which
// kernel gradients are summed depends on them.
constexpr int64_t kTasks = 32;
constexpr int64_t kFloatsOfSums = int64_t{1} << 21;  // that the tasks of a kernel gradient add up to, together

// [N, H, W, C].
struct Images {
  const float* data;
  int64_t N, H, W, C;
};

// Rows [row, row + rows) and columns [column, column + columns) of image n, zeros where they are outside of it; to has
// rows * pitch + kTail floats.
inline void CopyPadded(const Images& images, int64_t n, int64_t row, int64_t rows, int64_t column, int64_t columns,
                       int64_t pitch, float* to) {
  const int64_t C = images.C;
  const int64_t first = std::min(std::max<int64_t>(0, column), images.W);
  const int64_t last = std::max(first, std::min(images.W, column + columns));
  const int64_t before = std::min(columns, first - column) * C, inside = (last - first) * C;
  for (int64_t r = 0; r < rows; ++r, to += pitch) {
    const int64_t from_row = row + r;
    if (from_row < 0 || from_row >= images.H || inside == 0) {
      std::fill_n(to, pitch, 0.0f);
      continue;
    }
    const float* from = images.data + ((n * images.H + from_row) * images.W + first) * C;
    std::fill_n(to, before, 0.0f);
    std::memcpy(to + before, from, inside * sizeof(float));
    std::fill_n(to + before + inside, pitch - before - inside, 0.0f);
  }
  std::fill_n(to, kTail, 0.0f);
}

// [rows, columns], as the kernels want it.
inline PackedMatrix Pack(const ConvKernels& kernels, const float* matrix, int64_t rows, int64_t columns) {
  PackedMatrix packed = kernels.plan(rows, columns);
  for (const PackedMatrix::Tile& tile : packed.tiles) {
    float* to = packed.values.data() + tile.start;
    for (int64_t row = 0; row < rows; ++row, to += tile.width) {
      std::copy_n(matrix + row * columns + tile.column, tile.num_columns, to);
    }
  }
  return packed;
}

// How N images of `rows` rows are cut into strips of `height` rows, the last of an image shorter.
struct Strips {
  int64_t per_image, height, rows;

  // So small that a strip of `floats_per_row` stays in a core's cache, and that there are enough. Of at least 4 times
  // `multiple` rows, so that not many are copied twice.
  static Strips Of(int64_t N, int64_t rows, int64_t floats_per_row, int64_t multiple) {
    const int64_t in_cache = (int64_t{1} << 15) / std::max<int64_t>(1, floats_per_row);
    const int64_t wanted = N == 0 ? rows : rows * N / kTasks;
    int64_t height = std::max<int64_t>({1, 4 * multiple, std::min(in_cache, std::max<int64_t>(1, wanted))});
    height = std::min((height + multiple - 1) / multiple * multiple, std::max<int64_t>(rows, 1));
    return {(rows + height - 1) / height, height, rows};
  }

  int64_t First(int64_t strip) const { return strip % per_image * height; }
  int64_t Height(int64_t strip) const { return std::min(height, rows - First(strip)); }
};

struct Window {
  int64_t stride_h, stride_w, top, left, dilation_h, dilation_w;
};

// Which source pixels an output pixel (row, column) reads: (row * step_h - top + row of tap, ...).
struct Reading {
  struct Tap {
    int64_t row, column;
  };
  int64_t step_h, step_w, top, left;
  std::vector<Tap> taps;
  int64_t floats_of_tap;  // that lie one behind the other

  // How far the taps of `outputs` rows or columns reach.
  int64_t SpanH(int64_t outputs) const { return Span(outputs, step_h, &Tap::row); }
  int64_t SpanW(int64_t outputs, int64_t C) const {
    return Span(outputs, step_w, &Tap::column) + (floats_of_tap + C - 1) / C - 1;
  }

 private:
  int64_t Span(int64_t outputs, int64_t step, int64_t Tap::*coordinate) const {
    int64_t last = 0;
    for (const Tap& tap : taps) last = std::max(last, tap.*coordinate);
    return (outputs - 1) * step + last + 1;
  }
};

// Of the forward convolution: a tap for each kernel row, or for each of its pixels where they are apart.
inline Reading ForwardReading(const Window& w, int64_t KH, int64_t KW, int64_t C) {
  Reading reading{w.stride_h, w.stride_w, w.top, w.left, {}, 0};
  const bool whole_rows = w.dilation_w == 1;
  reading.floats_of_tap = whole_rows ? KW * C : C;
  for (int64_t kh = 0; kh < KH; ++kh) {
    for (int64_t kw = 0; kw < (whole_rows ? 1 : KW); ++kw) {
      reading.taps.push_back({kh * w.dilation_h, kw * w.dilation_w});
    }
  }
  return reading;
}

// A strip of padded source, and where its pixels and taps are.
struct Strip {
  std::vector<float> source;
  std::vector<int64_t> pixel, run;
  int64_t pitch = 0;

  // For output rows [row, row + rows) and all `columns` of image n. Pixels come row by row, or, of an even number of
  // rows and columns, in groups of 4, the pooling windows.
  Patches Load(const Images& images, const Reading& reading, int64_t n, int64_t row, int64_t rows, int64_t columns,
               bool by_windows = false) {
    const int64_t span_h = reading.SpanH(rows), span_w = reading.SpanW(columns, images.C);
    pitch = span_w * images.C;
    source.resize(span_h * pitch + kTail);
    CopyPadded(images, n, row * reading.step_h - reading.top, span_h, -reading.left, span_w, pitch, source.data());
    pixel.clear();
    const int64_t step_h = reading.step_h * pitch, step_w = reading.step_w * images.C, side = by_windows ? 2 : 1;
    for (int64_t r = 0; r < rows; r += side) {
      for (int64_t c = 0; c < columns; c += side) {
        for (int64_t i = r; i < r + side; ++i) {
          for (int64_t j = c; j < c + side; ++j) pixel.push_back(i * step_h + j * step_w);
        }
      }
    }
    run.clear();
    for (const Reading::Tap& tap : reading.taps) run.push_back(tap.row * pitch + tap.column * images.C);
    return {source.data(), pixel.data(), static_cast<int64_t>(pixel.size()),
            run.data(),    static_cast<int64_t>(run.size()), reading.floats_of_tap};
  }
};

// Share i of n things, among `shares`.
inline int64_t ShareStart(int64_t i, int64_t n, int64_t shares) { return n * i / shares; }

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_CONV_IMAGES_H_
