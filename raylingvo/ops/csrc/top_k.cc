// Maxima of blocks of scores, and which of them are high enough, on the widest vector registers that the processor has.

#include "top_k.h"

#ifdef __x86_64__
#include <immintrin.h>
#endif

#include <cstdint>
#include <cstring>
#include <limits>

#define RAYLINGVO_INLINE __attribute__((always_inline)) inline  // a caller's target holds for it too

namespace raylingvo {
namespace {

template <int n>
struct Vector {
  typedef float Floats __attribute__((vector_size(4 * n)));
  typedef uint32_t Words __attribute__((vector_size(4 * n)));
  typedef uint16_t HalfWords __attribute__((vector_size(2 * n)));
};

template <int n>
RAYLINGVO_INLINE void Load(const float* from, typename Vector<n>::Floats* x) {
  std::memcpy(x, from, sizeof(*x));
}

template <int n>
RAYLINGVO_INLINE void Load(const BFloat16* from, typename Vector<n>::Floats* x) {
  typename Vector<n>::HalfWords bits;
  std::memcpy(&bits, from, sizeof(bits));
  const auto words = __builtin_convertvector(bits, typename Vector<n>::Words) << 16;
  std::memcpy(x, &words, sizeof(*x));
}

// x > m ? x : m is one instruction, and leaves a NaN in x out.
template <typename Floats>
RAYLINGVO_INLINE void Raise(Floats* m, const Floats& x) {
  *m = x > *m ? x : *m;
}

template <int n>
RAYLINGVO_INLINE float Maximum(const typename Vector<n>::Floats& lanes) {
  typename Vector<n / 2>::Floats lower, upper;
  std::memcpy(&lower, &lanes, sizeof(lower));
  std::memcpy(&upper, reinterpret_cast<const char*>(&lanes) + sizeof(lower), sizeof(upper));
  Raise(&lower, upper);
  if constexpr (n > 4) {
    return Maximum<n / 2>(lower);
  } else {
    return lower[1] > lower[0] ? lower[1] : lower[0];
  }
}

template <int n, int64_t size, typename T>
RAYLINGVO_INLINE void Maxima(const T* scores, int64_t num_blocks, float* maxima) {
  using Floats = typename Vector<n>::Floats;
  const Floats nothing = Floats{} - std::numeric_limits<float>::infinity();
  for (int64_t i = 0; i < num_blocks; ++i, scores += size) {
    Floats a = nothing, b = nothing, x;
    Load<n>(scores, &x);
    Raise(&a, x);
    // Two maxima, as each has to wait for itself.
    for (int64_t j = n; j < size; j += n) {
      Load<n>(scores + j, &x);
      Raise(j / n % 2 == 0 ? &a : &b, x);
    }
    if constexpr (size > n) Raise(&a, b);
    maxima[i] = Maximum<n>(a);
  }
}

template <int n, typename T>
RAYLINGVO_INLINE void Maxima(const T* scores, int64_t size, int64_t num_blocks, float* maxima) {
  if (size == kBlock) return Maxima<n, kBlock>(scores, num_blocks, maxima);
  Maxima<n, kGroup>(scores, num_blocks, maxima);
}

#ifdef __x86_64__
template <typename T>
__attribute__((target("avx512f"))) void MaximaAvx512(const T* scores, int64_t size, int64_t num_blocks, float* maxima) {
  Maxima<16>(scores, size, num_blocks, maxima);
}

template <typename T>
__attribute__((target("avx2"))) void MaximaAvx2(const T* scores, int64_t size, int64_t num_blocks, float* maxima) {
  Maxima<8>(scores, size, num_blocks, maxima);
}

template <typename T>
__attribute__((target("avx2"))) void AtLeastAvx2(const T* scores, float base, float limit, uint64_t* bits) {
  for (int64_t i = 0; i < kBlock; i += 64) {
    uint64_t word = 0;
    for (int64_t j = 0; j < 64; j += 8) {
      Vector<8>::Floats x;
      Load<8>(scores + i + j, &x);
      const uint64_t byte = _mm256_movemask_ps(reinterpret_cast<__m256>(x + base >= limit));
      word |= byte << j;
    }
    bits[i / 64] = word;
  }
}
#endif

template <typename T>
void MaximaAnywhere(const T* scores, int64_t size, int64_t num_blocks, float* maxima) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx512f")) return MaximaAvx512(scores, size, num_blocks, maxima);
  if (__builtin_cpu_supports("avx2")) return MaximaAvx2(scores, size, num_blocks, maxima);
#endif
  Maxima<4>(scores, size, num_blocks, maxima);
}

template <typename T>
void AtLeastAnywhere(const T* scores, float base, float limit, uint64_t* bits) {
#ifdef __x86_64__
  if (__builtin_cpu_supports("avx2")) return AtLeastAvx2(scores, base, limit, bits);
#endif
  for (int64_t i = 0; i < kBlock; i += 64) {
    uint64_t word = 0;
    for (int64_t j = 0; j < 64; ++j) word |= uint64_t{base + ToFloat(scores[i + j]) >= limit} << j;
    bits[i / 64] = word;
  }
}

}  // namespace

void BlockMaxima(const float* scores, int64_t size, int64_t num_blocks, float* maxima) {
  MaximaAnywhere(scores, size, num_blocks, maxima);
}

void BlockMaxima(const BFloat16* scores, int64_t size, int64_t num_blocks, float* maxima) {
  MaximaAnywhere(scores, size, num_blocks, maxima);
}

void AtLeast(const float* scores, float base, float limit, uint64_t* bits) {
  AtLeastAnywhere(scores, base, limit, bits);
}

void AtLeast(const BFloat16* scores, float base, float limit, uint64_t* bits) {
  AtLeastAnywhere(scores, base, limit, bits);
}

}  // namespace raylingvo
