// Which of the instruction sets of each_level.inc the running machine has.

#ifndef RAYLINGVO_OPS_CSRC_LEVELS_H_
#define RAYLINGVO_OPS_CSRC_LEVELS_H_

#include <cstdint>

namespace raylingvo {

// The best of what there is for each instruction set, with registers of at most max_width floats.
#if defined(__x86_64__) && defined(__GNUC__)
#define RAYLINGVO_PICK_LEVEL(what, max_width) \
  ::raylingvo::PickLevel(max_width, ::raylingvo::baseline::what, ::raylingvo::avx2::what, ::raylingvo::avx512::what)
#else
#define RAYLINGVO_PICK_LEVEL(what, max_width) (static_cast<void>(max_width), ::raylingvo::baseline::what)
#endif

#if defined(__x86_64__) && defined(__GNUC__)
template <typename T>
const T& PickLevel(int64_t max_width, const T& baseline, const T& avx2, const T& avx512) {
  if (max_width >= 16 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq")) {
    return avx512;
  }
  return max_width >= 8 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? avx2 : baseline;
}
#endif

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_LEVELS_H_
