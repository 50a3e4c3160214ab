// The n-best of a beam search. What it does: top_k_hyps.py.
//
// b beams, n hyps of each in the state, N = b*n slots (slot i is hyp i / b of beam i % b), k hyps in the result, T
// steps, S source positions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "parallel.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

struct TopKAttributes {
  float length_normalization;
  float coverage_penalty;
  float target_seq_length_ratio;
  float missing_score;
};

struct Search {
  int64_t b, n, N, T, S;
  const int32_t* hyps;  // [T, N], as those below
  const int32_t* prev_hyps;
  const bool* done_hyps;
  const int32_t* eos_ids;
  const float* eos_global_scores;
  const float* atten_probs;      // [T, N, S]
  const float* eos_atten_probs;  // [T, N, S]
  const int32_t* src_lengths;    // [b]

  int64_t Parent(int64_t at) const { return std::clamp<int64_t>(prev_hyps[at], 0, N - 1); }
};

struct Ended {
  float score;
  int64_t row;
  int64_t slot;
};

// What hyps of such a score are ranked by: NaN is below all others but -inf.
float Rank(float score) {
  constexpr float kLowest = std::numeric_limits<float>::lowest();
  return score > kLowest ? score : kLowest;
}

bool IsBetter(const Ended& a, const Ended& b) {
  if (Rank(a.score) != Rank(b.score)) return Rank(a.score) > Rank(b.score);
  if (a.row != b.row) return a.row < b.row;
  return a.slot < b.slot;
}

// The hyps of a beam that have ended, by raw score and length.
std::vector<Ended> FindEnded(const Search& search, int64_t beam, float length_normalization) {
  std::vector<Ended> ended;
  for (int64_t row = 0; row < search.T; ++row) {
    const float length = static_cast<float>(row + 1);
    for (int64_t slot = beam; slot < search.N; slot += search.b) {
      const int64_t at = row * search.N + slot;
      if (!search.done_hyps[at]) continue;
      const float norm = std::pow((length + 5.0f) / 5.0f, length_normalization);
      ended.push_back({search.eos_global_scores[at] / norm, row, slot});
    }
  }
  return ended;
}

// Sum of the logarithms of the share of attention that each source position has got, at least 0.001 and at most 0.5.
float LogCoverage(const float* covered, const float* eos_atten_probs, int64_t size, float ratio) {
  constexpr int64_t kFactors = 64;  // 0.001 ^ 64 is still a normal double; a logarithm costs as much as they do
  double sum = 0.0;
  for (int64_t begin = 0; begin < size; begin += kFactors) {
    double product = 1.0;
    for (int64_t s = begin; s < std::min(begin + kFactors, size); ++s) {
      product *= std::clamp((covered[s] + eos_atten_probs[s]) / ratio, 0.001f, 0.5f);
    }
    sum += std::log(product);
  }
  return static_cast<float>(sum);
}

// The attention that led to the hyp in a slot, as it was before a row, added up from the first row on.
std::vector<float> CoveredBefore(const Search& search, int64_t row, int64_t slot) {
  std::vector<int64_t> path;
  while (row-- > 0) {
    path.push_back(row * search.N + slot);
    slot = search.Parent(path.back());
  }
  std::vector<float> covered(search.S);
  for (auto at = path.rbegin(); at != path.rend(); ++at) {
    for (int64_t s = 0; s < search.S; ++s) covered[s] += search.atten_probs[*at * search.S + s];
  }
  return covered;
}

// Adds to the scores what the hyps are penalised for the source positions that they did not attend to. ended: by rows.
void AddCoverage(const Search& search, int64_t beam, const TopKAttributes& attributes, std::vector<Ended>* ended) {
  const int64_t S = search.S, length = std::max<int32_t>(search.src_lengths[beam], 0), size = std::min(length, S);
  const float ratio = attributes.target_seq_length_ratio;
  // Positions that the state keeps no attention of count as not attended to.
  const float unseen = static_cast<float>(length - size) * static_cast<float>(std::log(0.001));
  // The attention that led to the hyp in each slot of this beam, as it was before the row.
  std::vector<float> covered(search.n * S), next(search.n * S), foreign;
  int64_t row = 0;
  for (Ended& end : *ended) {
    for (; row < end.row; ++row) {
      for (int64_t hyp = 0; hyp < search.n; ++hyp) {
        const int64_t at = row * search.N + hyp * search.b + beam, parent = search.Parent(at);
        const float* before = covered.data() + parent / search.b * S;
        if (parent % search.b != beam) {  // an empty hyp of compat="lingvo"
          foreign = CoveredBefore(search, row, parent);
          before = foreign.data();
        }
        for (int64_t s = 0; s < S; ++s) next[hyp * S + s] = before[s] + search.atten_probs[at * S + s];
      }
      covered.swap(next);
    }
    const float* eos_atten_probs = search.eos_atten_probs + (end.row * search.N + end.slot) * S;
    const float log = LogCoverage(covered.data() + end.slot / search.b * S, eos_atten_probs, size, ratio);
    end.score += ratio * attributes.coverage_penalty * (log + unseen);
  }
}

// The tokens of a hyp, its terminal symbol last.
void WriteIds(const Search& search, const Ended& end, int32_t* ids) {
  ids[end.row] = search.eos_ids[end.row * search.N + end.slot];
  int64_t slot = end.slot;
  for (int64_t row = end.row - 1; row >= 0; --row) {
    const int64_t at = row * search.N + slot;
    ids[row] = search.hyps[at];
    slot = search.Parent(at);
  }
}

ffi::Error TopKHyps(ffi::ThreadPool pool, ffi::BufferR2<ffi::S32> hyps, ffi::BufferR2<ffi::S32> prev_hyps,
                    ffi::BufferR2<ffi::PRED> done_hyps, ffi::BufferR2<ffi::S32> eos_ids,
                    ffi::BufferR2<ffi::F32> eos_global_scores, ffi::BufferR3<ffi::F32> atten_probs,
                    ffi::BufferR3<ffi::F32> eos_atten_probs, ffi::BufferR1<ffi::S32> src_lengths,
                    TopKAttributes attributes, ffi::ResultBufferR3<ffi::S32> ids, ffi::ResultBufferR2<ffi::S32> lens,
                    ffi::ResultBufferR2<ffi::F32> scores) {
  const int64_t T = hyps.dimensions()[0], N = hyps.dimensions()[1], b = lens->dimensions()[0];
  const int64_t k = lens->dimensions()[1];
  const Search search{b,
                      N / b,
                      N,
                      T,
                      atten_probs.dimensions()[2],
                      hyps.typed_data(),
                      prev_hyps.typed_data(),
                      done_hyps.typed_data(),
                      eos_ids.typed_data(),
                      eos_global_scores.typed_data(),
                      atten_probs.typed_data(),
                      eos_atten_probs.typed_data(),
                      src_lengths.typed_data()};
  ParallelFor(pool, b, [&](int64_t beam) {
    std::vector<Ended> ended = FindEnded(search, beam, attributes.length_normalization);
    if (attributes.coverage_penalty > 0.0f) AddCoverage(search, beam, attributes, &ended);
    const int64_t num_found = std::min<int64_t>(ended.size(), k);
    std::partial_sort(ended.begin(), ended.begin() + num_found, ended.end(), IsBetter);
    int32_t* ids_of_beam = ids->typed_data() + beam * k * T;
    std::fill_n(ids_of_beam, k * T, 0);
    for (int64_t i = 0; i < k; ++i) {
      const bool is_hyp = i < num_found;
      lens->typed_data()[beam * k + i] = is_hyp ? static_cast<int32_t>(ended[i].row) + 1 : 0;
      scores->typed_data()[beam * k + i] = is_hyp ? ended[i].score : attributes.missing_score;
      if (is_hyp) WriteIds(search, ended[i], ids_of_beam + i * T);
    }
  });
  return ffi::Error::Success();
}

}  // namespace
}  // namespace raylingvo

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(raylingvo::TopKAttributes, ffi::StructMember<float>("length_normalization"),
                                      ffi::StructMember<float>("coverage_penalty"),
                                      ffi::StructMember<float>("target_seq_length_ratio"),
                                      ffi::StructMember<float>("missing_score"));

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoTopKHyps(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoTopKHyps, raylingvo::TopKHyps,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::BufferR2<ffi::S32>>()   // hyps
                                  .Arg<ffi::BufferR2<ffi::S32>>()   // prev_hyps
                                  .Arg<ffi::BufferR2<ffi::PRED>>()  // done_hyps
                                  .Arg<ffi::BufferR2<ffi::S32>>()   // eos_ids
                                  .Arg<ffi::BufferR2<ffi::F32>>()   // eos_global_scores
                                  .Arg<ffi::BufferR3<ffi::F32>>()   // atten_probs
                                  .Arg<ffi::BufferR3<ffi::F32>>()   // eos_atten_probs
                                  .Arg<ffi::BufferR1<ffi::S32>>()   // src_lengths
                                  .Attrs<raylingvo::TopKAttributes>()
                                  .Ret<ffi::BufferR3<ffi::S32>>()    // ids
                                  .Ret<ffi::BufferR2<ffi::S32>>()    // lens
                                  .Ret<ffi::BufferR2<ffi::F32>>());  // scores
