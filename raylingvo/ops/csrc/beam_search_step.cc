// One step of a beam search. What it does: beam_search_step.py; its rules: _beam_search_attributes.py.
//
// b beams, k hyps per beam, N = b*k slots (slot i is hyp i / b of beam i % b), T steps, S source positions, V
// vocabulary; C entries of a slot.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "beam_merge.h"
#include "parallel.h"
#include "top_k.h"
#include "xla/ffi/api/ffi.h"

namespace ffi = xla::ffi;

namespace raylingvo {
namespace {

constexpr float kEmptyScore = -1e30f;  // the cumulative score of a slot without a hyp
constexpr float kNothing = -std::numeric_limits<float>::infinity();
constexpr int32_t kNoToken = -1;

// Below as many scores a step is over before other threads have woken up.
constexpr int64_t kMinScoresForThreads = 16 * 1024;
constexpr int64_t kMinChunk = 8 * 1024;  // scores
constexpr int64_t kTasksPerThread = 4;

struct Attributes {
  int64_t eos_id;
  int64_t eoc_id;
  int64_t num_hyps_per_beam;
  float beam_size;
  float valid_eos_max_logit_delta;
  float local_eos_threshold;
  bool merge_paths;
  bool allow_empty_terminated_hyp;
  bool ensure_full_beam;
  bool force_eos_in_last_step;
  bool force_eos_in_top_k;
  bool force_last_chunk_eoc_in_top_k;
  int64_t merged_topk_buffer_size_factor;
  bool beam_independence;
  bool is_lingvo;  // compat="lingvo"
};

// The state: read and written in place, so that a step costs the same however long the histories are.
struct State {
  float* best_scores;        // [b]
  float* cumulative_scores;  // [N]
  float* scores;             // [T, N], as those below
  int32_t* hyps;
  int32_t* prev_hyps;
  bool* done_hyps;
  int32_t* eos_ids;
  float* eos_scores;
  float* eos_global_scores;
  float* atten_probs;      // [T, N, S]
  float* eos_atten_probs;  // [T, N, S]
  bool* beam_done;         // [b]
  bool* all_done;          // []
};

struct Shape {
  int64_t b, k, N, T, S, V, C;
};

// How a slot ends in this step, if it does.
struct End {
  bool is_done = false;
  int32_t token = 0;
  float local = 0.0f;
  float g = 0.0f;
};

// What one task needs besides.
struct Scratch {
  explicit Scratch(const Shape& shape)
      : maxima(RoomForMaxima(shape.V)), top(shape.C), entries(shape.C), ends(shape.k) {
    candidates.reserve(shape.k * shape.C);
  }
  std::vector<float> maxima;
  std::vector<Entry> top, entries;
  std::vector<Candidate> candidates;
  std::vector<End> ends;
};

template <typename T>
class Step {
 public:
  Step(const Shape& shape, const Attributes& attributes, const T* log_probs, const float* atten_probs,
       const bool* is_last_chunk, const int32_t* last_steps, int64_t step, const State& state)
      : shape_(shape),
        a_(attributes),
        log_probs_(log_probs),
        atten_probs_(atten_probs),
        is_last_chunk_(is_last_chunk),
        last_steps_(last_steps),
        step_(step),
        state_(state) {}

  // Whether every beam had something to continue with.
  bool Run(ffi::ThreadPool& pool) {
    const int64_t num_threads = shape_.N * shape_.V < kMinScoresForThreads ? 1 : pool.num_threads();
    const int64_t most_chunks = std::max<int64_t>(shape_.V / kMinChunk, 1);
    if (num_threads <= 1) {
      Scratch scratch(shape_);
      for (int64_t beam = 0; beam < shape_.b; ++beam) FinishBeam(beam, &scratch);
    } else if (most_chunks == 1 && shape_.b >= kTasksPerThread * num_threads) {
      ParallelFor(pool, shape_.b, [&](int64_t beam) {
        Scratch scratch(shape_);
        FinishBeam(beam, &scratch);
      });
    } else {
      // Rows, or parts of them, one by one: a thread that comes late, or is slow, leaves the others little to wait for.
      // Who looks at the last of a beam's finishes it.
      num_chunks_ = std::clamp<int64_t>(kTasksPerThread * num_threads / shape_.N, 1, most_chunks);
      const int64_t tasks_of_beam = shape_.k * num_chunks_;
      chunk_entries_.resize(shape_.b * tasks_of_beam * shape_.C);
      chunk_sizes_.resize(shape_.b * tasks_of_beam);
      std::vector<std::atomic<int64_t>> num_left(shape_.b);
      for (auto& left : num_left) left = tasks_of_beam;
      ParallelFor(pool, shape_.b * tasks_of_beam, [&](int64_t task) {
        const int64_t beam = task / tasks_of_beam, row = task % tasks_of_beam / num_chunks_;
        ScanChunk(row * shape_.b + beam, task % num_chunks_);
        if (num_left[beam].fetch_sub(1) > 1) return;
        Scratch scratch(shape_);
        FinishBeam(beam, &scratch);
      });
    }
    *state_.all_done = std::all_of(state_.beam_done, state_.beam_done + shape_.b, [](bool done) { return done; });
    return !has_no_entries_;
  }

 private:
  bool IsSkipped(int64_t beam) const { return a_.beam_independence && state_.beam_done[beam]; }

  bool IsExpanded(int64_t slot) const {
    if (IsSkipped(slot % shape_.b) || (step_ == 0 && slot >= shape_.b)) return false;
    return a_.is_lingvo || !(state_.cumulative_scores[slot] <= kEmptyScore);
  }

  // Whether this is the step of force_eos_in_last_step.
  bool IsLastStep(int64_t slot) const { return a_.force_eos_in_last_step && last_steps_[slot % shape_.b] == step_; }

  const T* Row(int64_t slot) const { return log_probs_ + slot * shape_.V; }
  float Local(int64_t slot, int64_t token) const { return ToFloat(Row(slot)[token]); }
  float Score(int64_t slot, int64_t token) const { return state_.cumulative_scores[slot] + Local(slot, token); }

  void ScanChunk(int64_t slot, int64_t chunk) {
    if (!IsExpanded(slot)) return;
    const int64_t task = slot * num_chunks_ + chunk;
    std::vector<float> maxima(RoomForMaxima(shape_.V));
    std::vector<Entry> top(shape_.C);
    BestEntries best(&chunk_entries_[task * shape_.C], shape_.C);
    OfferBest(Row(slot), state_.cumulative_scores[slot], chunk * shape_.V / num_chunks_,
              (chunk + 1) * shape_.V / num_chunks_, shape_.C, maxima.data(), top.data(), &best);
    chunk_sizes_[task] = best.size();
  }

  // The best C tokens of a slot, best first; kNoToken where there are fewer. False if there is none for all are NaN.
  bool FindEntries(int64_t slot, Scratch* scratch) {
    std::vector<Entry>& entries = scratch->entries;
    BestEntries best(entries.data(), shape_.C);
    const float base = state_.cumulative_scores[slot];
    if (num_chunks_ == 0) {
      OfferBest(Row(slot), base, 0, shape_.V, shape_.C, scratch->maxima.data(), scratch->top.data(), &best);
    } else {
      for (int64_t task = slot * num_chunks_; task < (slot + 1) * num_chunks_; ++task) {
        const Entry* found = &chunk_entries_[task * shape_.C];
        for (int64_t i = 0; i < chunk_sizes_[task]; ++i) best.Offer(found[i].g, found[i].token);
      }
    }
    std::fill(entries.begin() + best.size(), entries.end(), Entry{kNothing, kNoToken});
    if (best.size() > 0 && (!a_.is_lingvo || best.size() == shape_.C)) return true;
    int64_t first = 0;
    while (first < shape_.V && std::isnan(base + Local(slot, first))) ++first;
    if (first == shape_.V) return false;
    const float g = base + Local(slot, first);
    if (a_.is_lingvo && g <= kLowest) entries[best.size()] = {g, static_cast<int32_t>(first)};
    return true;
  }

  // Whether Lingvo's buffer lets EOS in, whatever its score: it is compared with the C-th best so far before its
  // privilege is looked at, once 2C tokens have been buffered.
  bool GetsIn(int64_t slot, float eos_g) const {
    const int64_t size = 2 * shape_.C;
    if (a_.eos_id < size) return true;
    std::vector<float> buffer;
    float bottom = kNothing;
    for (int64_t token = 0; token < a_.eos_id; ++token) {
      const float g = Score(slot, token);
      if (!(g > bottom || (buffer.empty() && g == kNothing))) continue;
      buffer.push_back(g);
      if (static_cast<int64_t>(buffer.size()) < size) continue;
      std::nth_element(buffer.begin(), buffer.begin() + shape_.C - 1, buffer.end(), std::greater<float>());
      buffer.resize(shape_.C);
      bottom = buffer.back();
    }
    return eos_g >= bottom;
  }

  static bool Contains(const std::vector<Entry>& entries, int32_t token) {
    return std::any_of(entries.begin(), entries.end(), [&](const Entry& entry) { return entry.token == token; });
  }

  // Puts EOS and EOC among the entries where attributes say so; whether the slot must end with EOS.
  bool Force(int64_t slot, std::vector<Entry>* entries) const {
    bool is_forced = false;
    const bool is_last_step = IsLastStep(slot);
    if (is_last_step || a_.force_eos_in_top_k) {
      const int32_t eos = static_cast<int32_t>(a_.eos_id);
      const float g = Score(slot, eos);
      const bool is_admitted = g > kNothing;
      is_forced = is_last_step && is_admitted && (!a_.is_lingvo || GetsIn(slot, g));
      const bool goes_in = a_.force_eos_in_top_k ? is_admitted : is_forced;
      if (goes_in && !Contains(*entries, eos)) (*entries)[shape_.C - 1] = {g, eos};
    }
    if (a_.eoc_id >= 0 && a_.force_last_chunk_eoc_in_top_k && is_last_chunk_[slot]) {
      const int32_t eoc = static_cast<int32_t>(a_.eoc_id);
      const float g = Score(slot, eoc);
      // Not the last place, where a forced EOS is.
      if (g > kNothing && !Contains(*entries, eoc)) (*entries)[shape_.C - 2] = {g, eoc};
    }
    return is_forced;
  }

  bool HasLabels(int64_t slot) const {
    bool has_labels = false;
    WalkBack(Written(), slot, [&](int32_t token) { return !(has_labels = token != a_.eoc_id); });
    return has_labels;
  }

  Histories Written() const { return {state_.hyps, state_.prev_hyps, shape_.N, step_}; }

  // Adds the continuations of a slot to the candidates; how it ends.
  End Expand(int64_t slot, Scratch* scratch) {
    if (!FindEntries(slot, scratch)) {
      has_no_entries_ = true;
      return {};
    }
    std::vector<Entry>& entries = scratch->entries;
    const bool is_forced = Force(slot, &entries);
    const float threshold = entries[0].g - a_.valid_eos_max_logit_delta;
    const auto is_good = [&](float g, float local) { return g > threshold && local > a_.local_eos_threshold; };
    const bool is_last_step = IsLastStep(slot);
    const bool may_end_with_eoc = a_.eoc_id >= 0 && is_last_chunk_[slot];

    End end;
    if (is_forced && !a_.is_lingvo) {
      // A forced EOC may have taken the place of EOS; then Lingvo does not force it.
      const int32_t eos = static_cast<int32_t>(a_.eos_id);
      end = {true, eos, Local(slot, eos), Score(slot, eos)};
    }
    for (const Entry& entry : entries) {
      if (entry.token == kNoToken) continue;
      const float local = Local(slot, entry.token);
      if (entry.token == a_.eos_id) {
        if (is_last_step || is_good(entry.g, local)) end = {true, entry.token, local, entry.g};
      } else if (may_end_with_eoc && entry.token == a_.eoc_id) {
        // Of two that end the same hyp the later entry, which scores lower, stays.
        if (is_good(entry.g, local) && (a_.allow_empty_terminated_hyp || HasLabels(slot))) {
          end = {true, entry.token, local, entry.g};
        }
      } else {
        scratch->candidates.push_back({entry.g, entry.token, static_cast<int32_t>(slot), local});
      }
    }
    return end;
  }

  void FinishBeam(int64_t beam, Scratch* scratch) {
    if (IsSkipped(beam)) return;
    std::vector<Candidate>& candidates = scratch->candidates;
    candidates.clear();
    for (int64_t hyp = 0; hyp < shape_.k; ++hyp) {
      const int64_t slot = hyp * shape_.b + beam;
      scratch->ends[hyp] = IsExpanded(slot) ? Expand(slot, scratch) : End{};
    }
    if (a_.merge_paths) {
      const Labels labels(Written(), beam, shape_.b, shape_.k, static_cast<int32_t>(a_.eoc_id));
      if (a_.is_lingvo) {
        MergeInBuffer(labels, shape_.k, a_.merged_topk_buffer_size_factor * shape_.k, &candidates);
      } else {
        Merge(labels, &candidates);
      }
    }
    const int64_t num_found = std::min<int64_t>(candidates.size(), shape_.k);
    std::partial_sort(candidates.begin(), candidates.begin() + num_found, candidates.end(), IsBetter);
    candidates.resize(num_found);
    const Candidate empty = a_.is_lingvo ? Candidate{0.0f, 0, 0, 0.0f}
                                         : Candidate{kEmptyScore, 0, static_cast<int32_t>(beam), 0.0f};
    candidates.resize(shape_.k, empty);
    for (int64_t hyp = 0; hyp < shape_.k; ++hyp) {
      WriteRow(hyp * shape_.b + beam, candidates[hyp], scratch->ends[hyp]);
    }
    if (IsDone(beam)) state_.beam_done[beam] = true;
  }

  void WriteRow(int64_t slot, const Candidate& chosen, const End& end) const {
    const int64_t at = step_ * shape_.N + slot;
    state_.cumulative_scores[slot] = chosen.g;
    state_.scores[at] = chosen.local;
    state_.hyps[at] = chosen.token;
    state_.prev_hyps[at] = chosen.slot;
    state_.done_hyps[at] = end.is_done;
    state_.eos_ids[at] = end.token;
    state_.eos_scores[at] = end.local;
    state_.eos_global_scores[at] = end.g;
    if (shape_.S > 0) {
      const size_t bytes = shape_.S * sizeof(float);
      float* eos_atten_probs = state_.eos_atten_probs + at * shape_.S;
      std::memcpy(state_.atten_probs + at * shape_.S, atten_probs_ + chosen.slot * shape_.S, bytes);
      if (end.is_done) {
        std::memcpy(eos_atten_probs, atten_probs_ + slot * shape_.S, bytes);
      } else {
        std::memset(eos_atten_probs, 0, bytes);
      }
    }
    float& best = state_.best_scores[slot % shape_.b];
    if (end.is_done) best = std::max(best, end.g);
  }

  bool IsDone(int64_t beam) const {
    const float bound = state_.best_scores[beam] - a_.beam_size;
    for (int64_t slot = beam; slot < shape_.N; slot += shape_.b) {
      if (!(state_.cumulative_scores[slot] <= bound)) return false;
    }
    if (!a_.ensure_full_beam) return true;
    int64_t num_ended = 0;
    for (int64_t row = step_; row >= 0; --row) {
      for (int64_t slot = beam; slot < shape_.N; slot += shape_.b) {
        num_ended += state_.done_hyps[row * shape_.N + slot];
      }
      if (num_ended >= shape_.k) return true;
    }
    return false;
  }

  const Shape shape_;
  const Attributes a_;
  const T* const log_probs_;
  const float* const atten_probs_;
  const bool* const is_last_chunk_;
  const int32_t* const last_steps_;
  const int64_t step_;
  const State state_;
  std::atomic<bool> has_no_entries_{false};
  int64_t num_chunks_ = 0;            // 0: rows are looked at when their beam is finished
  std::vector<Entry> chunk_entries_;  // [N, num_chunks, C]
  std::vector<int64_t> chunk_sizes_;  // [N, num_chunks]
};

template <ffi::DataType dtype, int rank>
using Result = ffi::Result<ffi::Buffer<dtype, rank>>;

ffi::Error BeamSearchStep(ffi::ThreadPool pool, ffi::AnyBuffer log_probs, ffi::Buffer<ffi::F32, 2> atten_probs,
                          ffi::Buffer<ffi::S32, 0> cur_step, ffi::Buffer<ffi::PRED, 1> is_last_chunk,
                          ffi::Buffer<ffi::S32, 1> last_steps, ffi::RemainingArgs, Attributes attributes, Result<ffi::F32, 1> best_scores,
                          Result<ffi::F32, 1> cumulative_scores, Result<ffi::F32, 2> scores, Result<ffi::S32, 2> hyps,
                          Result<ffi::S32, 2> prev_hyps, Result<ffi::PRED, 2> done_hyps, Result<ffi::S32, 2> eos_ids,
                          Result<ffi::F32, 2> eos_scores, Result<ffi::F32, 2> eos_global_scores,
                          Result<ffi::F32, 3> all_atten_probs, Result<ffi::F32, 3> eos_atten_probs,
                          Result<ffi::PRED, 1> beam_done, Result<ffi::PRED, 0> all_done) {
  Shape shape;
  shape.k = attributes.num_hyps_per_beam;
  shape.N = log_probs.dimensions()[0];
  shape.V = log_probs.dimensions()[1];
  shape.b = shape.N / shape.k;
  shape.T = hyps->dimensions()[0];
  shape.S = atten_probs.dimensions()[1];
  shape.C = shape.k + (attributes.eoc_id >= 0 ? 2 : 1);
  const int64_t step = *cur_step.typed_data();
  if (step < 0 || step >= shape.T) {
    return ffi::Error(ffi::ErrorCode::kInvalidArgument,
                      "cur_step must be in [0, T = " + std::to_string(shape.T) + ") (got " +
                          std::to_string(step) + ")");
  }
  const State state{best_scores->typed_data(),     cumulative_scores->typed_data(), scores->typed_data(),
                    hyps->typed_data(),            prev_hyps->typed_data(),         done_hyps->typed_data(),
                    eos_ids->typed_data(),         eos_scores->typed_data(),        eos_global_scores->typed_data(),
                    all_atten_probs->typed_data(), eos_atten_probs->typed_data(),   beam_done->typed_data(),
                    all_done->typed_data()};
  const auto run = [&](const auto* scores_of_step) {
    return Step(shape, attributes, scores_of_step, atten_probs.typed_data(), is_last_chunk.typed_data(),
                last_steps.typed_data(), step, state)
        .Run(pool);
  };
  const bool is_fine = log_probs.element_type() == ffi::F32 ? run(log_probs.typed_data<float>())
                                                            : run(log_probs.reinterpret_data<BFloat16>());
  if (is_fine) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kInternal,
                    "No entries in TopK. This typically happens if the model is producing NaNs in the output.");
}

}  // namespace
}  // namespace raylingvo

XLA_FFI_REGISTER_STRUCT_ATTR_DECODING(
    raylingvo::Attributes, ffi::StructMember<int64_t>("eos_id"), ffi::StructMember<int64_t>("eoc_id"),
    ffi::StructMember<int64_t>("num_hyps_per_beam"), ffi::StructMember<float>("beam_size"),
    ffi::StructMember<float>("valid_eos_max_logit_delta"), ffi::StructMember<float>("local_eos_threshold"),
    ffi::StructMember<bool>("merge_paths"), ffi::StructMember<bool>("allow_empty_terminated_hyp"),
    ffi::StructMember<bool>("ensure_full_beam"), ffi::StructMember<bool>("force_eos_in_last_step"),
    ffi::StructMember<bool>("force_eos_in_top_k"), ffi::StructMember<bool>("force_last_chunk_eoc_in_top_k"),
    ffi::StructMember<int64_t>("merged_topk_buffer_size_factor"), ffi::StructMember<bool>("beam_independence"),
    ffi::StructMember<bool>("is_lingvo"));

extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* RaylingvoBeamSearchStep(XLA_FFI_CallFrame*);

XLA_FFI_DEFINE_HANDLER_SYMBOL(RaylingvoBeamSearchStep, raylingvo::BeamSearchStep,
                              ffi::Ffi::Bind()
                                  .Ctx<ffi::ThreadPool>()
                                  .Arg<ffi::AnyBuffer>()              // log_probs
                                  .Arg<ffi::BufferR2<ffi::F32>>()     // atten_probs
                                  .Arg<ffi::BufferR0<ffi::S32>>()     // cur_step
                                  .Arg<ffi::BufferR1<ffi::PRED>>()    // is_last_chunk
                                  .Arg<ffi::BufferR1<ffi::S32>>()     // last_steps
                                  .RemainingArgs()                    // the state, as the results below
                                  .Attrs<raylingvo::Attributes>()
                                  .Ret<ffi::BufferR1<ffi::F32>>()     // best_scores
                                  .Ret<ffi::BufferR1<ffi::F32>>()     // cumulative_scores
                                  .Ret<ffi::BufferR2<ffi::F32>>()     // scores
                                  .Ret<ffi::BufferR2<ffi::S32>>()     // hyps
                                  .Ret<ffi::BufferR2<ffi::S32>>()     // prev_hyps
                                  .Ret<ffi::BufferR2<ffi::PRED>>()    // done_hyps
                                  .Ret<ffi::BufferR2<ffi::S32>>()     // eos_ids
                                  .Ret<ffi::BufferR2<ffi::F32>>()     // eos_scores
                                  .Ret<ffi::BufferR2<ffi::F32>>()     // eos_global_scores
                                  .Ret<ffi::BufferR3<ffi::F32>>()     // atten_probs
                                  .Ret<ffi::BufferR3<ffi::F32>>()     // eos_atten_probs
                                  .Ret<ffi::BufferR1<ffi::PRED>>()    // beam_done
                                  .Ret<ffi::BufferR0<ffi::PRED>>());  // all_done
