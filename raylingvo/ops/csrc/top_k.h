// The best tokens of a row of scores, in one pass over it.

#ifndef RAYLINGVO_OPS_CSRC_TOP_K_H_
#define RAYLINGVO_OPS_CSRC_TOP_K_H_

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>

namespace raylingvo {

// The bits of a bfloat16: the upper half of a float's.
struct BFloat16 {
  uint16_t bits;
};

inline float ToFloat(float x) { return x; }
inline float ToFloat(BFloat16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

struct Entry {
  float g;  // base + score
  int32_t token;
};

// Entries are admitted above this: neither NaN nor -inf.
constexpr float kLowest = std::numeric_limits<float>::lowest();

// The best `capacity` of the entries offered, best first. Of equal g, those offered first are better: offer them by
// rising token. `storage` has room for `capacity` entries and outlives this.
class BestEntries {
 public:
  BestEntries(Entry* storage, int64_t capacity) : entries_(storage), capacity_(capacity) {}

  // What is below `bound` is not among the best: it is known that as many as there is room for are not.
  void RaiseTo(float bound) { bound_ = bound; }

  // What is below this is not admitted.
  float Limit() const { return size_ < capacity_ ? bound_ : entries_[size_ - 1].g; }

  // Whether g, offered now, would be one of the best.
  bool Admits(float g) const { return size_ < capacity_ ? g > kLowest && g >= bound_ : g > entries_[size_ - 1].g; }

  void Offer(float g, int32_t token) {
    if (!Admits(g)) return;
    int64_t i = size_ < capacity_ ? size_++ : capacity_ - 1;
    for (; i > 0 && g > entries_[i - 1].g; --i) entries_[i] = entries_[i - 1];
    entries_[i] = {g, token};
  }

  int64_t size() const { return size_; }

 private:
  Entry* entries_;
  int64_t capacity_;
  int64_t size_ = 0;
  float bound_ = kLowest;
};

// Scores in a block, and blocks in a group.
constexpr int64_t kBlock = 128;
constexpr int64_t kGroup = 16;

// maxima[i]: the greatest score in block i of num_blocks, NaNs left out; -inf if there are only those. size: that of a
// block, kBlock or kGroup.
void BlockMaxima(const float* scores, int64_t size, int64_t num_blocks, float* maxima);
void BlockMaxima(const BFloat16* scores, int64_t size, int64_t num_blocks, float* maxima);

// Bit i of the kBlock bits: whether base + scores[i] >= limit.
void AtLeast(const float* scores, float base, float limit, uint64_t* bits);
void AtLeast(const BFloat16* scores, float base, float limit, uint64_t* bits);

// Room that OfferBest needs for the maxima of blocks and groups of so many scores.
inline int64_t RoomForMaxima(int64_t num_scores) {
  const int64_t num_blocks = num_scores / kBlock;
  return num_blocks + num_blocks / kGroup + 1;
}

// Offers base + scores[token] for all tokens in [begin, end) that can be among the best `capacity`. maxima: room for
// RoomForMaxima(end - begin) floats. top: room for `capacity` entries.
//
// The capacity-th greatest block maximum bounds what can be among the best, as the capacity-th greatest of groups of
// blocks bounds that: few blocks are looked at again, and there is no branch per score that the processor could not
// foresee. Rounding keeps order, so base need not be added before the maximum is taken.
template <typename T>
void OfferBest(const T* scores, float base, int64_t begin, int64_t end, int64_t capacity, float* maxima, Entry* top,
               BestEntries* best) {
  const auto offer = [&](int64_t from, int64_t to) {
    for (int64_t token = from; token < to; ++token) {
      best->Offer(base + ToFloat(scores[token]), static_cast<int32_t>(token));
    }
  };
  const int64_t num_blocks = (end - begin) / kBlock;
  if (num_blocks <= capacity) return offer(begin, end);
  BlockMaxima(scores + begin, kBlock, num_blocks, maxima);
  float* of_groups = maxima + num_blocks;
  const int64_t num_full = num_blocks / kGroup, num_groups = (num_blocks + kGroup - 1) / kGroup;
  BlockMaxima(maxima, kGroup, num_full, of_groups);
  if (num_groups > num_full) of_groups[num_full] = *std::max_element(maxima + num_full * kGroup, of_groups);
  // Calls visit(i) for the blocks whose maxima are at least what limit() is then.
  const auto for_blocks = [&](const auto& limit, const auto& visit) {
    for (int64_t group = 0; group < num_groups; ++group) {
      if (!(of_groups[group] >= limit())) continue;
      for (int64_t i = group * kGroup; i < std::min((group + 1) * kGroup, num_blocks); ++i) {
        if (maxima[i] >= limit()) visit(i);
      }
    }
  };
  BestEntries greatest_groups(top, capacity);
  for (int64_t group = 0; group < num_groups; ++group) greatest_groups.Offer(of_groups[group], 0);
  const float least = greatest_groups.size() == capacity ? greatest_groups.Limit() : kLowest;
  BestEntries greatest(top, capacity);
  for_blocks([&] { return std::max(least, greatest.Limit()); }, [&](int64_t i) { greatest.Offer(maxima[i], 0); });
  if (greatest.size() == capacity) best->RaiseTo(base + greatest.Limit());
  const float bound = greatest.size() == capacity ? greatest.Limit() : kLowest;
  for_blocks([bound] { return bound; }, [&](int64_t i) {
    if (!best->Admits(base + maxima[i])) return;
    const int64_t first = begin + i * kBlock;
    uint64_t bits[kBlock / 64];
    AtLeast(scores + first, base, best->Limit(), bits);
    for (int64_t j = 0; j < kBlock / 64; ++j) {
      for (uint64_t left = bits[j]; left != 0; left &= left - 1) {
        const int64_t token = first + j * 64 + __builtin_ctzll(left);
        best->Offer(base + ToFloat(scores[token]), static_cast<int32_t>(token));
      }
    }
  });
  offer(begin + num_blocks * kBlock, end);
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_TOP_K_H_
