// Centers of a point cloud and the neighbours of each, threads over examples, then over centers.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

// Points whose largest distance is found by vector instructions before one of them is looked for.
constexpr int64_t kBlock = 256;
constexpr int kLanes = 8;
constexpr int64_t kCentersPerTask = 4;

// As _hash in sample_points.py.
uint32_t Hash(uint32_t value) {
  value = (value ^ (value >> 16)) * 0x7feb352du;
  value = (value ^ (value >> 15)) * 0x846ca68bu;
  return value ^ (value >> 16);
}

struct Options {
  bool farthest, closest, again, nearby;
  float max_distance;
};

// The points of one example, coordinate by coordinate.
struct Cloud {
  std::vector<float> x, y, z;

  Cloud(const float* points, int64_t n) : x(n), y(n), z(n) {
    for (int64_t i = 0; i < n; ++i) {
      x[i] = points[3 * i];
      y[i] = points[3 * i + 1];
      z[i] = points[3 * i + 2];
    }
  }
  int64_t size() const { return static_cast<int64_t>(x.size()); }
};

// Lowers the squared distance from the nearest center to that from (x, y), in x and y alone; returns the row of the
// largest, the lowest of equal ones.
int64_t UpdateAndFindFarthest(const Cloud& cloud, float x, float y, float* distance) {
  const int64_t n = cloud.size();
  float best = -2;
  int64_t best_block = 0;
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t end = std::min(n, begin + kBlock);
    float lane[kLanes];
    std::fill(lane, lane + kLanes, -2.0f);
    int64_t i = begin;
    for (; i + kLanes <= end; i += kLanes) {
      for (int j = 0; j < kLanes; ++j) {
        const float dx = cloud.x[i + j] - x, dy = cloud.y[i + j] - y, d = dx * dx + dy * dy;
        const float now = d < distance[i + j] ? d : distance[i + j];
        distance[i + j] = now;
        lane[j] = now > lane[j] ? now : lane[j];
      }
    }
    for (; i < end; ++i) {
      const float dx = cloud.x[i] - x, dy = cloud.y[i] - y, d = dx * dx + dy * dy;
      distance[i] = d < distance[i] ? d : distance[i];
      lane[0] = std::max(lane[0], distance[i]);
    }
    const float largest = *std::max_element(lane, lane + kLanes);
    if (largest > best) {
      best = largest;
      best_block = begin;
    }
  }
  int64_t row = best_block;
  while (row + 1 < n && distance[row] != best) ++row;
  return row;
}

int64_t FindFarthest(const float* distance, int64_t n) { return std::max_element(distance, distance + n) - distance; }

// The same, but only for points in the 27 cubes around that of the center. cubes: [P, 3], that of each point.
void UpdateNearby(const Cloud& cloud, const int32_t* cubes, int64_t center, float* distance) {
  const float x = cloud.x[center], y = cloud.y[center];
  const auto is_near = [&](int64_t i, int axis) {
    return std::abs(int64_t{cubes[3 * i + axis]} - cubes[3 * center + axis]) <= 1;
  };
  for (int64_t i = 0; i < cloud.size(); ++i) {
    if (!is_near(i, 0) || !is_near(i, 1) || !is_near(i, 2)) continue;
    const float dx = cloud.x[i] - x, dy = cloud.y[i] - y;
    distance[i] = std::min(distance[i], dx * dx + dy * dy);
  }
}

// The centers of one example. cubes: read if options.nearby.
void SelectCenters(const Cloud& cloud, const float* start, const int32_t* cubes, int64_t num_seeded, const Options& options,
                   int64_t num_centers, int32_t* center, float* padding) {
  const int64_t n = cloud.size();
  std::vector<float> distance(start, start + n);
  const int64_t num_candidates = std::count_if(start, start + n, [](float d) { return d >= 0; });
  const int64_t num_all = std::min(num_centers, num_seeded + num_candidates);
  int64_t next = num_seeded > 0 ? 0 : FindFarthest(distance.data(), n);
  for (int64_t i = 0; i < num_all; ++i) {
    const int64_t row = i < num_seeded ? i : next;
    center[i] = static_cast<int32_t>(row);
    padding[i] = 0;
    // Before the update, which may then find it no more; not a distance that an update can lower again.
    if (!options.again) distance[row] = -1;
    if (options.farthest && !options.nearby) {
      next = UpdateAndFindFarthest(cloud, cloud.x[row], cloud.y[row], distance.data());
    } else {
      if (options.farthest) UpdateNearby(cloud, cubes, row, distance.data());
      next = FindFarthest(distance.data(), n);
    }
  }
  std::fill(center + num_all, center + num_centers, 0);
  std::fill(padding + num_all, padding + num_centers, 1.0f);
}

// The neighbours of the i-th center, which is point `row`. `found` is room to work in.
void FindNeighbors(const Cloud& cloud, const bool* real, int64_t row, int64_t i, uint32_t seed, const Options& options,
                   int64_t num_neighbors, std::vector<std::pair<float, int32_t>>& found, int32_t* index,
                   float* padding) {
  const float x = cloud.x[row], y = cloud.y[row], z = cloud.z[row];
  const float limit = options.max_distance * options.max_distance;
  const uint32_t stream = Hash(seed ^ Hash(static_cast<uint32_t>(i) + 1));
  const int64_t n = cloud.size();
  found.clear();
  float squared[kBlock];
  for (int64_t begin = 0; begin < n; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    for (int64_t j = 0; j < size; ++j) {
      const float dx = cloud.x[begin + j] - x, dy = cloud.y[begin + j] - y, dz = cloud.z[begin + j] - z;
      squared[j] = dx * dx + dy * dy + dz * dz;
    }
    for (int64_t j = 0; j < size; ++j) {
      if (squared[j] <= limit && real[begin + j]) found.emplace_back(squared[j], static_cast<int32_t>(begin + j));
    }
  }
  const int64_t k = std::min(num_neighbors, static_cast<int64_t>(found.size()));
  if (options.closest) {
    std::partial_sort(found.begin(), found.begin() + k, found.end());
  } else {
    // The largest random numbers, the lower row of equal ones.
    std::partial_sort(found.begin(), found.begin() + k, found.end(), [stream](const auto& a, const auto& b) {
      const uint32_t random_a = Hash(stream + a.second) >> 1, random_b = Hash(stream + b.second) >> 1;
      return random_a != random_b ? random_a > random_b : a.second < b.second;
    });
  }
  for (int64_t j = 0; j < k; ++j) {
    index[j] = found[j].second;
    padding[j] = 0;
  }
  std::fill(index + k, index + num_neighbors, 0);
  std::fill(padding + k, padding + num_neighbors, 1.0f);
}

ffi::Error SamplePoints(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> points, ffi::Buffer<ffi::F32> start,
                        ffi::Buffer<ffi::PRED> real, ffi::Buffer<ffi::S32> num_seeded, ffi::Buffer<ffi::U32> seeds,
                        ffi::Buffer<ffi::F32> max_distance, ffi::Buffer<ffi::S32> cubes,
                        ffi::ResultBuffer<ffi::S32> center, ffi::ResultBuffer<ffi::F32> center_padding,
                        ffi::ResultBuffer<ffi::S32> indices, ffi::ResultBuffer<ffi::F32> indices_padding, bool farthest,
                        bool closest, bool again, bool nearby) {
  const int64_t batch = points.dimensions()[0], n = points.dimensions()[1];
  const int64_t num_centers = indices->dimensions()[1], num_neighbors = indices->dimensions()[2];
  const Options options{farthest, closest, again, nearby, max_distance.typed_data()[0]};
  std::vector<Cloud> clouds;
  clouds.reserve(batch);
  for (int64_t b = 0; b < batch; ++b) clouds.emplace_back(points.typed_data() + 3 * n * b, n);
  ParallelFor(pool, batch, [&](int64_t b) {
    const int32_t* cubes_of_example = nearby ? cubes.typed_data() + 3 * n * b : nullptr;
    SelectCenters(clouds[b], start.typed_data() + n * b, cubes_of_example, num_seeded.typed_data()[0], options, num_centers,
                  center->typed_data() + num_centers * b, center_padding->typed_data() + num_centers * b);
  });
  const int64_t num_all = batch * num_centers;
  ParallelFor(pool, (num_all + kCentersPerTask - 1) / kCentersPerTask, [&](int64_t task) {
    std::vector<std::pair<float, int32_t>> found;
    const int64_t end = std::min(num_all, (task + 1) * kCentersPerTask);
    for (int64_t i = task * kCentersPerTask; i < end; ++i) {
      int32_t* index = indices->typed_data() + num_neighbors * i;
      float* padding = indices_padding->typed_data() + num_neighbors * i;
      if (center_padding->typed_data()[i] != 0) {
        std::fill(index, index + num_neighbors, 0);
        std::fill(padding, padding + num_neighbors, 1.0f);
        continue;
      }
      const int64_t b = i / num_centers;
      FindNeighbors(clouds[b], real.typed_data() + n * b, center->typed_data()[i], i % num_centers,
                    seeds.typed_data()[b], options, num_neighbors, found, index, padding);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoSamplePoints(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoSamplePoints, raylingvo::SamplePoints,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::PRED>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::U32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("farthest")
                                  .Attr<bool>("closest")
                                  .Attr<bool>("again")
                                  .Attr<bool>("nearby"));
