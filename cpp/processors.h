// The processors of this machine that the process may use, and work that they share.
#ifndef RELAX_INPLACE_PROCESSORS_H_
#define RELAX_INPLACE_PROCESSORS_H_

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <thread>

namespace relax_inplace {

/*! \brief More do not move memory faster. */
constexpr int kMostThreads = 64;

/*!
 * \brief How many threads are to move so many bytes: as many as the process may use processors
 *        (its affinity, and the quota of its cgroups), or the environment variable
 *        RELAX_INPLACE_NUM_THREADS; at most one for each megabyte.
 *
 * What is no number of threads is not looked at: a conversion is under way, and an error would cost
 * the weight that is being moved.
 */
int ThreadsToMove(int64_t bytes);

/*!
 * \brief Calls work(thread, begin, end) with ranges of `grain` that together are [0, count).
 *
 * It returns when all is done. `work` must not throw. Threads are made for each call: a pool would
 * be gone in a process that was forked. One that the system does not make, or does not run in time,
 * is not waited for: the others do its part.
 */
template <typename F>
void ShareOut(int threads, int64_t count, int64_t grain, const F& work) {
  struct Shared {  // outlives the call in a thread that comes too late
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  const auto run = [count, grain, &work](Shared* shared, int thread) {
    int64_t done = 0;
    for (;;) {
      const int64_t begin = shared->next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) break;
      const int64_t end = std::min(begin + grain, count);
      work(thread, begin, end);  // which is there until all is done
      done += end - begin;
    }
    if (done == 0) return;
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done += done;
    if (shared->done == count) shared->all_done.notify_all();
  };
  const int64_t most = std::min<int64_t>({threads, kMostThreads, (count + grain - 1) / grain});
  std::shared_ptr<Shared> shared;
  try {
    if (most > 1) shared = std::make_shared<Shared>();
    for (int i = 1; i < most; ++i) std::thread([=] { run(shared.get(), i); }).detach();
  } catch (...) {  // out of threads, or of memory for one
  }
  if (shared == nullptr) {
    if (count > 0) work(0, 0, count);
    return;
  }
  run(shared.get(), 0);
  std::unique_lock<std::mutex> lock(shared->mutex);
  shared->all_done.wait(lock, [&] { return shared->done == count; });
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_PROCESSORS_H_
