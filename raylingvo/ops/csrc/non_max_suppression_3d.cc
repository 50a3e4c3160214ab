// Non-maximum suppression of rotated boxes, threads over classes and over the boxes of a class.

#include <algorithm>
#include <cstdint>
#include <vector>

#include "iou3d.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

// Candidates that are held against all boxes kept so far, in parallel, before they are held against each other.
constexpr int64_t kBlock = 256;
constexpr int64_t kCandidatesPerTask = 32;

// Whether one of boxes [begin, end) overlaps `box` by more than `threshold`.
bool Suppressed(const Box3D& box, const std::vector<Box3D>& boxes, int64_t begin, int64_t end, float threshold) {
  // Any IoU, even 0, is more than a negative threshold.
  if (threshold < 0) return begin < end;
  BoxBatch batch;
  float iou[BoxBatch::kSize];
  const auto found = [&] {
    IouWithBatch(box, batch, iou);
    const bool any = std::any_of(iou, iou + batch.size, [&](float value) { return value > threshold; });
    batch.size = 0;
    return any;
  };
  for (int64_t j = begin; j < end; ++j) {
    if (!MayOverlap(box, boxes[j])) continue;
    batch.Add(boxes[j]);
    if (batch.size == BoxBatch::kSize && found()) return true;
  }
  return found();
}

struct Outputs {
  int32_t* indices;
  float* scores;
  float* mask;
};

void SuppressClass(ffi::ThreadPool& pool, const std::vector<Box3D>& boxes, const float* scores, int64_t stride,
                   float iou_threshold, float score_threshold, int64_t max_boxes, Outputs out) {
  std::vector<int32_t> candidates;
  for (size_t i = 0; i < boxes.size(); ++i) {
    if (scores[i * stride] >= score_threshold) candidates.push_back(static_cast<int32_t>(i));
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](int32_t a, int32_t b) { return scores[a * stride] > scores[b * stride]; });
  const int64_t n = static_cast<int64_t>(candidates.size());
  std::vector<Box3D> kept;
  std::vector<uint8_t> suppressed(kBlock);
  for (int64_t begin = 0; begin < n && static_cast<int64_t>(kept.size()) < max_boxes; begin += kBlock) {
    const int64_t size = std::min(kBlock, n - begin);
    const int64_t before = static_cast<int64_t>(kept.size());
    if (before > 0) {
      ParallelFor(pool, (size + kCandidatesPerTask - 1) / kCandidatesPerTask, [&](int64_t task) {
        const int64_t end = std::min(size, (task + 1) * kCandidatesPerTask);
        for (int64_t i = task * kCandidatesPerTask; i < end; ++i) {
          suppressed[i] = Suppressed(boxes[candidates[begin + i]], kept, 0, before, iou_threshold);
        }
      });
    }
    for (int64_t i = 0; i < size; ++i) {
      const int64_t count = static_cast<int64_t>(kept.size());
      if (count == max_boxes) break;
      const int32_t index = candidates[begin + i];
      if (suppressed[i] || Suppressed(boxes[index], kept, before, count, iou_threshold)) continue;
      out.indices[count] = index;
      out.scores[count] = scores[index * stride];
      out.mask[count] = 1;
      kept.push_back(boxes[index]);
    }
  }
}

ffi::Error NonMaxSuppression3D(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> boxes, ffi::Buffer<ffi::F32> scores,
                               ffi::Buffer<ffi::F32> iou_threshold, ffi::Buffer<ffi::F32> score_threshold,
                               ffi::ResultBuffer<ffi::S32> indices, ffi::ResultBuffer<ffi::F32> kept_scores,
                               ffi::ResultBuffer<ffi::F32> mask) {
  const int64_t n = scores.dimensions()[0], num_classes = scores.dimensions()[1];
  const int64_t max_boxes = indices->dimensions()[1];
  const std::vector<Box3D> all = Box3D::FromRows(boxes.typed_data(), n);
  ParallelFor(pool, num_classes, [&](int64_t c) {
    const Outputs out{indices->typed_data() + c * max_boxes, kept_scores->typed_data() + c * max_boxes,
                      mask->typed_data() + c * max_boxes};
    std::fill(out.indices, out.indices + max_boxes, 0);
    std::fill(out.scores, out.scores + max_boxes, 0.0f);
    std::fill(out.mask, out.mask + max_boxes, 0.0f);
    SuppressClass(pool, all, scores.typed_data() + c, num_classes, iou_threshold.typed_data()[c],
                  score_threshold.typed_data()[c], max_boxes, out);
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoNonMaxSuppression3D(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoNonMaxSuppression3D, raylingvo::NonMaxSuppression3D,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::S32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>());
