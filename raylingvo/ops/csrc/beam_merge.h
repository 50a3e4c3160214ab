// Which continuations of a beam spell the same labels, and how they become one.

#ifndef RAYLINGVO_OPS_CSRC_BEAM_MERGE_H_
#define RAYLINGVO_OPS_CSRC_BEAM_MERGE_H_

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

namespace raylingvo {

struct Candidate {
  float g;  // raw score of the continued hyp
  int32_t token;
  int32_t slot;
  float local;
};

inline bool IsBetter(const Candidate& a, const Candidate& b) {
  if (a.g != b.g) return a.g > b.g;
  if (a.token != b.token) return a.token < b.token;
  return a.slot < b.slot;
}

// The histories of all slots: [T, N] each, of which `num_steps` rows are written.
struct Histories {
  const int32_t* hyps;
  const int32_t* prev_hyps;
  int64_t num_slots;
  int64_t num_steps;
};

// Calls visit(token) for the tokens that led to a slot, the last first, until it returns false.
template <typename Visit>
void WalkBack(const Histories& histories, int64_t slot, Visit&& visit) {
  for (int64_t row = histories.num_steps - 1; row >= 0; --row) {
    const int64_t at = row * histories.num_slots + slot;
    if (!visit(histories.hyps[at])) return;
    slot = std::clamp<int64_t>(histories.prev_hyps[at], 0, histories.num_slots - 1);
  }
}

// The label sequences of a beam's hyps, epsilons left out. They are compared themselves and not by hashes of them: what
// is merged is never undone.
class Labels {
 public:
  Labels(const Histories& histories, int64_t beam, int64_t num_beams, int64_t num_hyps, int32_t epsilon)
      : num_beams_(num_beams), num_hyps_(num_hyps), epsilon_(epsilon), sequences_(num_hyps) {
    for (int64_t hyp = 0; hyp < num_hyps; ++hyp) {
      WalkBack(histories, hyp * num_beams + beam, [&](int32_t token) {
        if (token != epsilon) sequences_[hyp].push_back(token);
        return true;
      });
    }
    equal_.resize(num_hyps * num_hyps);
    extends_.resize(num_hyps * num_hyps);
    for (int64_t i = 0; i < num_hyps; ++i) {
      const auto& first = sequences_[i];
      for (int64_t j = 0; j < num_hyps; ++j) {
        const auto& second = sequences_[j];
        equal_[i * num_hyps + j] = first == second;
        // The last label comes first.
        extends_[i * num_hyps + j] =
            second.size() == first.size() + 1 && std::equal(first.begin(), first.end(), second.begin() + 1);
      }
    }
  }

  // Whether two continuations of this beam's hyps spell the same.
  bool AreSame(const Candidate& a, const Candidate& b) const {
    const bool a_is_epsilon = a.token == epsilon_, b_is_epsilon = b.token == epsilon_;
    if (a_is_epsilon == b_is_epsilon) return a.token == b.token && equal_[Pair(a, b)];
    return a_is_epsilon ? CatchesUp(b, a) : CatchesUp(a, b);
  }

 private:
  // Whether `a` emits the label that `b`, which emits epsilon, has already.
  bool CatchesUp(const Candidate& a, const Candidate& b) const {
    return extends_[Pair(a, b)] && sequences_[b.slot / num_beams_].front() == a.token;
  }

  int64_t Pair(const Candidate& a, const Candidate& b) const {
    return a.slot / num_beams_ * num_hyps_ + b.slot / num_beams_;
  }

  int64_t num_beams_;
  int64_t num_hyps_;
  int32_t epsilon_;
  std::vector<std::vector<int32_t>> sequences_;  // the last label first
  std::vector<char> equal_, extends_;            // [num_hyps, num_hyps]
};

// The best of those that spell the same gets the score of all of them together; the others go.
inline void Merge(const Labels& labels, std::vector<Candidate>* candidates) {
  std::sort(candidates->begin(), candidates->end(), IsBetter);
  auto& all = *candidates;
  std::vector<char> is_merged(all.size());
  size_t num_kept = 0;
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_merged[i]) continue;
    Candidate best = all[i];
    // Against the best of them, so that a candidate on its own keeps its score to the bit.
    float total = 1.0f;
    for (size_t j = i + 1; j < all.size(); ++j) {
      if (is_merged[j] || !labels.AreSame(all[i], all[j])) continue;
      total += all[j].g == all[i].g ? 1.0f : std::exp(all[j].g - all[i].g);
      is_merged[j] = true;
    }
    best.g += std::log(total);
    all[num_kept++] = best;
  }
  all.resize(num_kept);
}

// Keeps what Lingvo's buffer of `size` places keeps, which loses probability: one candidate after the other is added,
// and when the buffer is full it is cut to the k best. After that, a candidate that does not beat the k-th is dropped
// before it could be merged.
inline void MergeInBuffer(const Labels& labels, int64_t k, int64_t size, std::vector<Candidate>* candidates) {
  std::vector<Candidate> buffer;
  bool is_cut = false;
  for (const Candidate& candidate : *candidates) {
    if (is_cut && !IsBetter(candidate, buffer[k - 1])) continue;
    const auto same = std::find_if(buffer.begin(), buffer.end(),
                                   [&](const Candidate& other) { return labels.AreSame(candidate, other); });
    if (same == buffer.end()) {
      buffer.push_back(candidate);
      if (static_cast<int64_t>(buffer.size()) == size) {
        std::sort(buffer.begin(), buffer.end(), IsBetter);
        buffer.resize(k);
        is_cut = true;
      }
      continue;
    }
    const float more = std::max(candidate.g, same->g), less = std::min(candidate.g, same->g);
    if (IsBetter(candidate, *same)) *same = candidate;
    same->g = more + std::log1p(less == more ? 1.0f : std::exp(less - more));
  }
  *candidates = std::move(buffer);
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_BEAM_MERGE_H_
