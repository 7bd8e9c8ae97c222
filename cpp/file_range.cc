// pread, and posix_fadvise where the system has it.
#include "file_range.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <string>

#include "processors.h"

namespace relax_inplace {

/*! \brief Bytes that one thread reads at a time. */
constexpr int64_t kPart = int64_t{4} << 20;
constexpr int kEnds = -1;
/*! \brief So many bytes of a file the system is asked for before they are read. */
constexpr int64_t kReadAhead = int64_t{32} << 20;

/*! \brief Asks the system to have bytes of a file in memory soon; it may do nothing. */
static void AdviseWillNeed(int descriptor, int64_t offset, int64_t bytes) noexcept {
#if defined(POSIX_FADV_WILLNEED)
  posix_fadvise(descriptor, offset, bytes, POSIX_FADV_WILLNEED);
#else
  (void)descriptor, (void)offset, (void)bytes;
#endif
}

static int ReadBytes(int descriptor, int64_t offset, char* memory, int64_t bytes) noexcept {
  while (bytes > 0) {
    const ssize_t moved = pread(descriptor, memory, std::min(bytes, kPart), offset);
    if (moved < 0 && errno == EINTR) continue;
    if (moved <= 0) return moved < 0 ? errno : kEnds;
    memory += moved;
    offset += moved;
    bytes -= moved;
  }
  return 0;
}

FileRange::FileRange(int descriptor, int64_t offset, int64_t bytes)
    : descriptor_(fcntl(descriptor, F_DUPFD_CLOEXEC, 0)), offset_(offset), bytes_(bytes) {
  error_ = descriptor_ < 0 || fstat(descriptor_, &state_) != 0 ? errno : 0;
  if (error_ == 0) AdviseWillNeed(descriptor_, offset_, std::min(bytes_, kReadAhead));
}

FileRange::~FileRange() {
  if (descriptor_ >= 0) close(descriptor_);
}

int FileRange::Read(int64_t begin, char* memory, int64_t bytes) const noexcept {
  if (error_ != 0) return error_;
  const int64_t ahead = begin + kReadAhead;
  if (ahead < bytes_) {
    AdviseWillNeed(descriptor_, offset_ + ahead, std::min(bytes, bytes_ - ahead));
  }
  return ReadBytes(descriptor_, offset_ + begin, memory, bytes);
}

int FileRange::ReadAll(char* memory, int threads) const noexcept {
  std::atomic<int> error{0};
  ShareOut(threads, (bytes_ + kPart - 1) / kPart, 1, [&](int, int64_t part, int64_t end) {
    for (; part < end && error == 0; ++part) {
      const int64_t begin = part * kPart;
      const int found = Read(begin, memory + begin, std::min(kPart, bytes_ - begin));
      if (found != 0) error = found;
    }
  });
  return error;
}

static int64_t NanosecondsOf(const struct stat& state) {
#if defined(__APPLE__)
  const struct timespec& time = state.st_mtimespec;
#else
  const struct timespec& time = state.st_mtim;
#endif
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

std::string FileRange::ProblemAfter(int error) const {
  if (error != 0) return error == kEnds ? "the file ends too early" : std::strerror(error);
  struct stat now;
  const bool is_same = fstat(descriptor_, &now) == 0 && now.st_size == state_.st_size &&
                       NanosecondsOf(now) == NanosecondsOf(state_);
  return is_same ? "" : "the file has changed while it was read";
}

}  // namespace relax_inplace
