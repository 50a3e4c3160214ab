// Average precision of rotated boxes, by the rules of KITTI or VOC: each overlap once, threads over images, then over
// score thresholds.

#include <algorithm>
#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <utility>
#include <vector>

#include "iou3d.h"
#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

// The boxes of one image, by their rows, in input order. iou[g * predictions.size() + p].
struct Image {
  std::vector<int32_t> truths, predictions;
  std::vector<float> iou;
};

struct Inputs {
  float iou_threshold;
  const int32_t* truth_ignore;
  int64_t num_truths;
  const int32_t* prediction_ignore;
  const float* score;
  int64_t num_predictions;
  std::vector<Image> images;
};

struct Outputs {
  float* ap;
  float* precision_recall;
  float* score_and_hit;
  int64_t num_recall_points;
};

std::vector<Image> GroupByImage(ffi::ThreadPool& pool, const float* truths, const int32_t* truth_image, int64_t n,
                                const float* predictions, const int32_t* prediction_image, int64_t m) {
  std::map<int32_t, Image> by_id;
  for (int64_t i = 0; i < n; ++i) by_id[truth_image[i]].truths.push_back(static_cast<int32_t>(i));
  for (int64_t i = 0; i < m; ++i) by_id[prediction_image[i]].predictions.push_back(static_cast<int32_t>(i));
  std::vector<Image> images;
  for (auto& item : by_id) images.push_back(std::move(item.second));
  ParallelFor(pool, static_cast<int64_t>(images.size()), [&](int64_t i) {
    Image& image = images[i];
    std::vector<Box3D> boxes;
    for (const int32_t p : image.predictions) boxes.push_back(Box3D::From(predictions + 7 * p));
    image.iou.resize(image.truths.size() * boxes.size());
    for (size_t g = 0; g < image.truths.size(); ++g) {
      IouWithBoxes(Box3D::From(truths + 7 * image.truths[g]), boxes.data(), boxes.size(),
                   image.iou.data() + g * boxes.size());
    }
  });
  return images;
}

// Each ground truth box in turn takes the best prediction that is left: better(p, q) says whether p, with its overlap,
// is better than q. Calls matched(ground truth, prediction) with rows.
template <typename Better, typename Matched>
void MatchInOrder(const Inputs& in, const Image& image, float score_threshold, std::vector<uint8_t>& used,
                  const Better& better, const Matched& matched) {
  const size_t num = image.predictions.size();
  used.assign(num, 0);
  for (size_t g = 0; g < image.truths.size(); ++g) {
    if (in.truth_ignore[image.truths[g]] == 2) continue;
    const float* iou = image.iou.data() + g * num;
    size_t best = num;
    for (size_t p = 0; p < num; ++p) {
      if (used[p] || !(iou[p] > in.iou_threshold) || !(in.score[image.predictions[p]] >= score_threshold)) continue;
      if (best == num || better(iou, p, best)) best = p;
    }
    if (best == num) continue;
    used[best] = 1;
    matched(image.truths[g], best);
  }
}

// The scores at which recall comes closest to each of the levels i / (R - 1), from the highest down.
std::vector<float> ScoreThresholds(std::vector<float> scores, int64_t to_be_found, int64_t num_recall_points) {
  std::sort(scores.begin(), scores.end(), std::greater<float>());
  std::vector<float> chosen;
  for (size_t i = 1; i <= scores.size(); ++i) {
    // In float32, as Lingvo: ties are common, and rounding decides them.
    const float left = static_cast<float>(i) / static_cast<float>(to_be_found);
    const float right = static_cast<float>(i + 1) / static_cast<float>(to_be_found);
    const float level = static_cast<float>(chosen.size()) / static_cast<float>(num_recall_points - 1);
    if (right - level >= level - left || i == scores.size()) chosen.push_back(scores[i - 1]);
  }
  return chosen;
}

// True positives over the predictions that count, of those with a score >= threshold.
double Precision(const Inputs& in, float threshold, bool honour_ignore_all) {
  int64_t right = 0, counted = 0;
  std::vector<uint8_t> used, left_out;
  for (const Image& image : in.images) {
    const auto ignored = [&](size_t p) { return in.prediction_ignore[image.predictions[p]] != 0; };
    left_out.assign(image.predictions.size(), 0);
    MatchInOrder(
        in, image, threshold, used,
        [&](const float* iou, size_t p, size_t q) {
          return ignored(p) != ignored(q) ? ignored(q) : iou[p] > iou[q];
        },
        [&](int32_t truth, size_t p) {
          if (in.truth_ignore[truth] != 0) left_out[p] = 1;
          if (in.truth_ignore[truth] == 0 && !ignored(p)) ++right;
        });
    for (size_t p = 0; p < image.predictions.size(); ++p) {
      if (!(in.score[image.predictions[p]] >= threshold) || ignored(p) || left_out[p]) continue;
      bool absorbed = false;
      for (size_t g = 0; honour_ignore_all && !used[p] && g < image.truths.size(); ++g) {
        absorbed |= in.truth_ignore[image.truths[g]] == 2 &&
                    image.iou[g * image.predictions.size() + p] > in.iou_threshold;
      }
      if (!absorbed) ++counted;
    }
  }
  return counted > 0 ? static_cast<double>(right) / counted : 1;
}

void Kitti(ffi::ThreadPool& pool, const Inputs& in, bool honour_ignore_all, const Outputs& out) {
  for (int64_t p = 0; p < in.num_predictions; ++p) {
    out.score_and_hit[2 * p] = in.score[p];
    out.score_and_hit[2 * p + 1] = 0;
  }
  std::vector<float> scores;
  std::vector<uint8_t> used;
  for (const Image& image : in.images) {
    const auto score = [&](size_t p) { return in.score[image.predictions[p]]; };
    MatchInOrder(
        in, image, 0, used, [&](const float*, size_t p, size_t q) { return score(p) > score(q); },
        [&](int32_t truth, size_t p) {
          const int32_t row = image.predictions[p];
          out.score_and_hit[2 * row + 1] = 1;
          if (in.truth_ignore[truth] == 0 && in.prediction_ignore[row] == 0) scores.push_back(in.score[row]);
        });
  }
  const int64_t to_be_found = std::count_if(in.truth_ignore, in.truth_ignore + in.num_truths, [&](int32_t ignore) {
    return honour_ignore_all ? ignore == 0 : ignore != 1;
  });
  const std::vector<float> thresholds = ScoreThresholds(std::move(scores), to_be_found, out.num_recall_points);
  const int64_t num = out.num_recall_points;
  std::vector<double> precision(std::max<int64_t>(num, thresholds.size()), 0.0);
  ParallelFor(pool, static_cast<int64_t>(thresholds.size()),
              [&](int64_t i) { precision[i] = Precision(in, thresholds[i], honour_ignore_all); });
  *out.ap = static_cast<float>(std::accumulate(precision.begin(), precision.begin() + num, 0.0) / num);
  double best = 0;
  for (int64_t i = num - 1; i >= 0; --i) {
    best = std::max(best, precision[i]);
    out.precision_recall[2 * i] = static_cast<float>(best);
    out.precision_recall[2 * i + 1] = static_cast<float>(static_cast<double>(i) / (num - 1));
  }
}

enum class Outcome : uint8_t { kNotCounted, kWrong, kRight };

// Predictions of an image, from the highest score down, take the ground truth box that overlaps them most.
void MatchVoc(const Inputs& in, const Image& image, std::vector<Outcome>& outcome) {
  std::vector<size_t> order(image.predictions.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t p, size_t q) {
    return in.score[image.predictions[p]] > in.score[image.predictions[q]];
  });
  const size_t num_truths = image.truths.size();
  std::vector<uint8_t> used(num_truths, 0);
  for (const size_t p : order) {
    size_t best = num_truths;
    const auto iou = [&](size_t g) { return image.iou[g * image.predictions.size() + p]; };
    for (size_t g = 0; g < num_truths; ++g) {
      if (!used[g] && (best == num_truths || iou(g) > iou(best))) best = g;
    }
    Outcome& result = outcome[image.predictions[p]];
    if (best == num_truths || iou(best) < in.iou_threshold) {
      result = Outcome::kWrong;
      continue;
    }
    const int32_t ignore = in.truth_ignore[image.truths[best]];
    used[best] = ignore != 2;
    result = ignore == 0 ? Outcome::kRight : Outcome::kNotCounted;
  }
}

void Voc(ffi::ThreadPool& pool, const Inputs& in, const Outputs& out) {
  std::vector<Outcome> outcome(in.num_predictions, Outcome::kNotCounted);
  ParallelFor(pool, static_cast<int64_t>(in.images.size()), [&](int64_t i) { MatchVoc(in, in.images[i], outcome); });
  std::fill(out.score_and_hit, out.score_and_hit + 2 * in.num_predictions, -1.0f);
  const int64_t num_truths = std::count(in.truth_ignore, in.truth_ignore + in.num_truths, 0);
  std::vector<int32_t> order(in.num_predictions);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t p, int32_t q) { return in.score[p] > in.score[q]; });

  // best[i]: the highest precision at a recall of i / R or more; in float32, as Lingvo: rounding decides which levels are reached.
  const int64_t num = out.num_recall_points;
  std::vector<double> best(num + 1, 0.0);
  int64_t right = 0, counted = 0;
  for (const int32_t p : order) {
    if (outcome[p] == Outcome::kNotCounted) continue;
    ++counted;
    right += outcome[p] == Outcome::kRight;
    const float recall = num_truths > 0 ? static_cast<float>(right) / static_cast<float>(num_truths) : 0.0f;
    const int64_t level = std::min(num, static_cast<int64_t>(recall * static_cast<float>(num)));
    best[level] = std::max(best[level], static_cast<double>(right) / counted);
  }
  for (int64_t i = num - 1; i >= 0; --i) best[i] = std::max(best[i], best[i + 1]);
  *out.ap = num_truths > 0 ? static_cast<float>(std::accumulate(best.begin(), best.end(), 0.0) / (num + 1))
                           : std::numeric_limits<float>::quiet_NaN();
  for (int64_t i = 0; i < num; ++i) {
    out.precision_recall[2 * i] = num_truths > 0 ? static_cast<float>(best[num - i]) : 0.0f;
    // Where nothing is to be found there is no curve: Lingvo then has the recalls of KITTI's.
    out.precision_recall[2 * i + 1] = num_truths > 0
                                          ? static_cast<float>(static_cast<double>(num - i) / num)
                                          : static_cast<float>(i) / static_cast<float>(num - 1);
  }
}

ffi::Error AveragePrecision3D(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> iou_threshold, ffi::Buffer<ffi::F32> truths,
                              ffi::Buffer<ffi::S32> truth_image, ffi::Buffer<ffi::S32> truth_ignore,
                              ffi::Buffer<ffi::F32> predictions, ffi::Buffer<ffi::S32> prediction_image,
                              ffi::Buffer<ffi::S32> prediction_ignore, ffi::Buffer<ffi::F32> score,
                              ffi::ResultBuffer<ffi::F32> ap, ffi::ResultBuffer<ffi::F32> precision_recall,
                              ffi::ResultBuffer<ffi::F32> score_and_hit, bool kitti, bool honour_ignore_all) {
  const int64_t n = truths.dimensions()[0], m = predictions.dimensions()[0];
  const Inputs in{iou_threshold.typed_data()[0],
                  truth_ignore.typed_data(),
                  n,
                  prediction_ignore.typed_data(),
                  score.typed_data(),
                  m,
                  GroupByImage(pool, truths.typed_data(), truth_image.typed_data(), n, predictions.typed_data(),
                               prediction_image.typed_data(), m)};
  const Outputs out{ap->typed_data(), precision_recall->typed_data(), score_and_hit->typed_data(),
                    precision_recall->dimensions()[0]};
  if (kitti) {
    Kitti(pool, in, honour_ignore_all, out);
  } else {
    Voc(pool, in, out);
  }
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoAveragePrecision3D(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoAveragePrecision3D, raylingvo::AveragePrecision3D,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::S32>>()
                                  .Arg<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Ret<ffi::Buffer<ffi::F32>>()
                                  .Attr<bool>("kitti")
                                  .Attr<bool>("honour_ignore_all"));
