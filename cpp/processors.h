// The processors of this machine that the process may use, and work that they share.
#ifndef RELAX_INPLACE_PROCESSORS_H_
#define RELAX_INPLACE_PROCESSORS_H_

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdint>
#include <thread>

namespace relax_inplace {

/*! \brief More do not move memory faster. */
constexpr int kMostThreads = 64;

/*!
 * \brief How many threads are to move so many bytes: as many as the process may use processors
 *        (its affinity, and the quota of its cgroups), or the environment variable
 *        RELAX_INPLACE_NUM_THREADS; at most one for each megabyte.
 * \throws ValueError if the variable is set to what is no number of threads.
 */
int ThreadsToMove(int64_t bytes);

/*!
 * \brief Calls work(thread, begin, end) with ranges of `grain` that together are [0, count).
 *
 * It returns when all is done. `work` must not throw. Threads are made for each call: a pool would
 * be gone in a process that was forked. Where the system has no thread to give, the others do its
 * part.
 */
template <typename F>
void ShareOut(int threads, int64_t count, int64_t grain, const F& work) {
  std::atomic<int64_t> next{0};
  const auto run = [&](int thread) {
    for (;;) {
      const int64_t begin = next.fetch_add(grain, std::memory_order_relaxed);
      if (begin >= count) return;
      work(thread, begin, std::min(begin + grain, count));
    }
  };
  std::array<std::thread, kMostThreads> others;
  const int64_t most = std::min<int64_t>({threads, kMostThreads, (count + grain - 1) / grain});
  int made = 1;
  try {
    for (; made < most; ++made) others[made] = std::thread(run, made);
  } catch (...) {  // out of threads, or of memory for one
  }
  run(0);
  for (int i = 1; i < made; ++i) others[i].join();
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_PROCESSORS_H_
