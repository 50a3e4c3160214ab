// Loops over the threads that XLA computes with.

#ifndef RAYLINGVO_OPS_CSRC_PARALLEL_H_
#define RAYLINGVO_OPS_CSRC_PARALLEL_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>

#include "xla/ffi/api/ffi.h"

namespace raylingvo {

// Calls body(i) for every i in [0, n), each once, in any order and on several threads, and returns when all are done.
//
// The calling thread works too, and is itself one of the pool's: it never waits for a task that has not begun, so loops
// can be nested and a pool of one thread is enough. body must not throw.
template <typename Body>
void ParallelFor(xla::ffi::ThreadPool& pool, int64_t n, Body&& body) {
  if (n <= 0) return;
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), n) - 1;
  if (helpers <= 0) {
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
  // Shared with the tasks: one that the pool starts late finds no work, and may outlive this call.
  struct Shared {
    std::atomic<int64_t> next{0};
    std::atomic<int64_t> done{0};
    std::mutex mutex;
    std::condition_variable all_done;
  };
  auto shared = std::make_shared<Shared>();
  auto* function = &body;  // only used by who has been given an i, and this call returns after all those
  auto work = [shared, n, function] {
    for (int64_t i; (i = shared->next.fetch_add(1)) < n;) {
      (*function)(i);
      if (shared->done.fetch_add(1) + 1 == n) {
        std::lock_guard<std::mutex> lock(shared->mutex);
        shared->all_done.notify_one();
      }
    }
  };
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(work)(work));  // takes a temporary only
  work();
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done.load() == n; });
}

}  // namespace raylingvo

#endif  // RAYLINGVO_OPS_CSRC_PARALLEL_H_
