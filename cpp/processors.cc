// What Linux says of the processors of a process; elsewhere, what the standard library says.
#include "processors.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif

namespace relax_inplace {

constexpr int64_t kBytesPerThread = int64_t{1} << 20;

#if defined(__linux__)

static int InAffinity() {
  cpu_set_t set;
  // It fails where there are more than a set has room for: enough, then.
  return sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : kMostThreads;
}

/*! \brief Processors' worth of time that a cgroup may use, rounded up; kMostThreads if all. */
static int InQuota(const std::string& group, bool is_v2) {
  double quota = 0;
  double period = 0;
  if (is_v2) {
    std::ifstream(group + "/cpu.max") >> quota >> period;  // "max 100000" reads as no number
  } else {
    std::ifstream(group + "/cpu.cfs_quota_us") >> quota;  // -1 is none
    std::ifstream(group + "/cpu.cfs_period_us") >> period;
  }
  if (!(quota > 0 && period > 0 && quota / period < kMostThreads)) return kMostThreads;
  return static_cast<int>((quota + period - 1) / period);
}

/*! \brief The same for the groups of this process, and those that they are in. */
static int InCgroups() {
  int least = kMostThreads;
  std::ifstream groups("/proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {  // "0::/a/b" or "4:cpu,cpuacct:/a/b"
    const size_t first = line.find(':');
    const size_t second = line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = "," + line.substr(first + 1, second - first - 1) + ",";
    const bool is_v2 = controllers == ",,";
    if (!is_v2 && controllers.find(",cpu,") == std::string::npos) continue;
    const std::string root = is_v2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/cpu";
    // In a container the path may be one of the host's, and the root is the group itself.
    for (std::string path = line.substr(second + 1); !path.empty();) {
      least = std::min(least, InQuota(root + path, is_v2));
      path.resize(path == "/" ? 0 : std::max<size_t>(path.rfind('/'), 1));
    }
  }
  return least;
}

static int CountProcessors() { return std::max(1, std::min(InAffinity(), InCgroups())); }

#else

static int CountProcessors() {
  return std::clamp(static_cast<int>(std::thread::hardware_concurrency()), 1, kMostThreads);
}

#endif

int ThreadsToMove(int64_t bytes) {
  static const int processors = CountProcessors();  // it reads files
  int most = processors;
  if (const char* given = std::getenv("RELAX_INPLACE_NUM_THREADS")) {
    char* end = nullptr;
    const long number = std::strtol(given, &end, 10);
    if (end != given && *end == '\0' && number > 0) {
      most = static_cast<int>(std::min<long>(number, kMostThreads));
    }
  }
  return static_cast<int>(std::clamp<int64_t>(bytes / kBytesPerThread, 1, most));
}

}  // namespace relax_inplace
