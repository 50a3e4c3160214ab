// Rotated boxes in 3-D, and the intersection over union of one with many.

#ifndef RAYLINGVO_OPS_CSRC_IOU3D_H_
#define RAYLINGVO_OPS_CSRC_IOU3D_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#if defined(__x86_64__) && defined(__GNUC__)
#define RAYLINGVO_IOU3D_AVX2 1
#define RAYLINGVO_INLINE inline __attribute__((always_inline))
#else
#define RAYLINGVO_INLINE inline
#endif

namespace raylingvo {

// [cx, cy, cz, dx, dy, dz, heading] in what the geometry needs. An invalid box (flat, or a side that is not within
// 1e-3 and 1e6) has radius < 0, and so meets no other.
struct Box3D {
  double cx, cy, half_x, half_y, cosine, sine, z_min, z_max, volume, radius;

  static Box3D From(const float* box) {
    const double dx = box[3], dy = box[4], dz = box[5], heading = box[6];
    Box3D b;
    b.cx = box[0];
    b.cy = box[1];
    b.half_x = dx / 2;
    b.half_y = dy / 2;
    b.cosine = std::cos(heading);
    b.sine = std::sin(heading);
    b.z_min = box[2] - dz / 2;
    b.z_max = box[2] + dz / 2;
    b.volume = dx * dy * dz;
    const bool valid = b.z_min < b.z_max && dx > 1e-3 && dx < 1e6 && dy > 1e-3 && dy < 1e6;
    b.radius = valid ? std::hypot(b.half_x, b.half_y) : -1;
    return b;
  }

  static std::vector<Box3D> FromRows(const float* boxes, int64_t n) {
    std::vector<Box3D> rows;
    rows.reserve(n);
    for (int64_t i = 0; i < n; ++i) rows.push_back(From(boxes + 7 * i));
    return rows;
  }
};

// Whether the circles around the bases overlap, and the ranges of z: else nothing is left to compute.
RAYLINGVO_INLINE bool MayOverlap(const Box3D& a, const Box3D& b) {
  const double x = a.cx - b.cx, y = a.cy - b.cy, reach = a.radius + b.radius;
  return (x * x + y * y < reach * reach) & (a.radius > 0) & (b.radius > 0) & (a.z_min < b.z_max) & (b.z_min < a.z_max);
}

// Boxes side by side in memory, for loops that the compiler turns into vector instructions.
struct BoxBatch {
  static constexpr int kSize = 64;
  int size = 0;
  double cx[kSize], cy[kSize], half_x[kSize], half_y[kSize], cosine[kSize], sine[kSize];
  double z_min[kSize], z_max[kSize], volume[kSize];

  void Add(const Box3D& b) {
    const int i = size++;
    cx[i] = b.cx;
    cy[i] = b.cy;
    half_x[i] = b.half_x;
    half_y[i] = b.half_y;
    cosine[i] = b.cosine;
    sine[i] = b.sine;
    z_min[i] = b.z_min;
    z_max[i] = b.z_max;
    volume[i] = b.volume;
  }
};

// GCC vectorizes no selection between results of operations that might trap.
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC push_options
#pragma GCC optimize("no-trapping-math")
#endif

namespace iou3d_internal {

// Two selections, not nested, for compilers to vectorize. `high` for NaN: then what is interpolated has no extent, and
// any point of it will do.
RAYLINGVO_INLINE double Clamp(double value, double low, double high) {
  const double capped = value < high ? value : high;
  return capped > low ? capped : low;
}

// The integral of clamp(y, -h, h) dx over the part of the edge from (x0, y0) to (x1, y1) with |x| <= w.
RAYLINGVO_INLINE double EdgeIntegral(double x0, double y0, double x1, double y1, double w, double h) {
  const double xa = Clamp(x0, -w, w), xb = Clamp(x1, -w, w);
  const double run = 1 / (x1 - x0);
  const double ya = y0 + Clamp((xa - x0) * run, 0, 1) * (y1 - y0);
  const double yb = y0 + Clamp((xb - x0) * run, 0, 1) * (y1 - y0);
  // The mean of clamp(y) as y goes from ya to yb: y is below -h, within and above h for three stretches of the way.
  const double rise = 1 / (yb - ya);
  const double ca = Clamp(ya, -h, h), cb = Clamp(yb, -h, h);
  const double mean = cb + 0.5 * (ca - cb) * (Clamp((-h - ya) * rise, 0, 1) + Clamp((h - ya) * rise, 0, 1));
  return (xb - xa) * mean;
}

RAYLINGVO_INLINE void IouWithBatchBody(const Box3D& a, const BoxBatch& b, float* iou) {
  const double w = a.half_x, h = a.half_y;
  for (int i = 0; i < b.size; ++i) {
    // In the frame of a: b's center (x, y), and half its sides u and v. The area in common is the integral of
    // -clamp(y) dx counterclockwise around b. Unlike a polygon that is clipped edge by edge, it needs no cases.
    const double dx = b.cx[i] - a.cx, dy = b.cy[i] - a.cy;
    const double x = a.cosine * dx + a.sine * dy, y = a.cosine * dy - a.sine * dx;
    const double c = a.cosine * b.cosine[i] + a.sine * b.sine[i], s = a.cosine * b.sine[i] - a.sine * b.cosine[i];
    const double ux = c * b.half_x[i], uy = s * b.half_x[i], vx = -s * b.half_y[i], vy = c * b.half_y[i];
    const double x0 = x - ux - vx, y0 = y - uy - vy, x1 = x + ux - vx, y1 = y + uy - vy;
    const double x2 = x + ux + vx, y2 = y + uy + vy, x3 = x - ux + vx, y3 = y - uy + vy;
    const double area = -(EdgeIntegral(x0, y0, x1, y1, w, h) + EdgeIntegral(x1, y1, x2, y2, w, h) +
                          EdgeIntegral(x2, y2, x3, y3, w, h) + EdgeIntegral(x3, y3, x0, y0, w, h));
    const double high = a.z_max < b.z_max[i] ? a.z_max : b.z_max[i];
    const double low = a.z_min > b.z_min[i] ? a.z_min : b.z_min[i];
    const double common = area * (high - low);
    const double ratio = common / (a.volume + b.volume[i] - common);
    // Lingvo's rule: areas up to 1e-8 are those of boxes that touch.
    iou[i] = static_cast<float>(area > 1e-8 && high > low ? ratio : 0.0);
  }
}

#ifdef RAYLINGVO_IOU3D_AVX2
__attribute__((target("avx2"))) inline void IouWithBatchAvx2(const Box3D& a, const BoxBatch& b, float* iou) {
  IouWithBatchBody(a, b, iou);
}
#endif

}  // namespace iou3d_internal

#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC pop_options
#endif

// iou[i] = the intersection over union of valid boxes a and b[i], in [0, 1].
inline void IouWithBatch(const Box3D& a, const BoxBatch& b, float* iou) {
#ifdef RAYLINGVO_IOU3D_AVX2
  if (__builtin_cpu_supports("avx2")) return iou3d_internal::IouWithBatchAvx2(a, b, iou);
#endif
  iou3d_internal::IouWithBatchBody(a, b, iou);
}

// iou[j] = the intersection over union of a with each of n boxes; 0 where one is invalid.
inline void IouWithBoxes(const Box3D& a, const Box3D* boxes, int64_t n, float* iou) {
  std::fill(iou, iou + n, 0.0f);
  BoxBatch batch;
  int64_t column[BoxBatch::kSize];
  float found[BoxBatch::kSize];
  const auto flush = [&] {
    IouWithBatch(a, batch, found);
    for (int i = 0; i < batch.size; ++i) iou[column[i]] = found[i];
    batch.size = 0;
  };
  for (int64_t j = 0; j < n; ++j) {
    if (!MayOverlap(a, boxes[j])) continue;
    column[batch.size] = j;
    batch.Add(boxes[j]);
    if (batch.size == BoxBatch::kSize) flush();
  }
  flush();
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_IOU3D_H_
