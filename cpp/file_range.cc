// pread, and posix_fadvise where the system has it.
#include "file_range.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <tuple>

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

static int64_t NanosecondsOf(const struct stat& state) {
#if defined(__APPLE__)
  const struct timespec& time = state.st_mtimespec;
#else
  const struct timespec& time = state.st_mtim;
#endif
  return int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

/*! \brief Which file it is, how large, and when it was written. */
using FileState = std::tuple<dev_t, ino_t, off_t, int64_t>;

static FileState StateOf(const struct stat& found) {
  return {found.st_dev, found.st_ino, found.st_size, NanosecondsOf(found)};
}

/*! \brief All that are there. */
struct OpenFiles {
  std::mutex mutex;
  std::map<FileState, std::weak_ptr<const OpenFile>> by_state;

  static OpenFiles& Get() {
    static auto* all = new OpenFiles;  // a tensor may be freed when the process ends
    return *all;
  }
};

std::shared_ptr<const OpenFile> OpenFile::Of(int descriptor, int* error) {
  struct stat state;
  *error = fstat(descriptor, &state) == 0 ? 0 : errno;
  if (*error != 0) return nullptr;
  OpenFiles& all = OpenFiles::Get();
  const std::lock_guard<std::mutex> lock(all.mutex);
  std::weak_ptr<const OpenFile>& known = all.by_state[StateOf(state)];
  std::shared_ptr<const OpenFile> file = known.lock();
  if (file != nullptr) return file;
  const int own = fcntl(descriptor, F_DUPFD_CLOEXEC, 0);
  if (own >= 0) {
    file.reset(new OpenFile(own, state));
    known = file;
  } else {
    *error = errno;
    all.by_state.erase(StateOf(state));
  }
  return file;
}

OpenFile::~OpenFile() {
  OpenFiles& all = OpenFiles::Get();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    const auto known = all.by_state.find(StateOf(state_));
    if (known != all.by_state.end() && known->second.expired()) all.by_state.erase(known);
  }
  close(descriptor_);
}

bool OpenFile::HasChanged() const {
  struct stat now;
  return fstat(descriptor_, &now) != 0 || StateOf(now) != StateOf(state_);
}

FileRange::FileRange(int descriptor, int64_t offset, int64_t bytes)
    : offset_(offset), bytes_(bytes), file_(OpenFile::Of(descriptor, &error_)) {}

void FileRange::Prefetch() const noexcept {
  if (is_open()) AdviseWillNeed(file_->descriptor(), offset_, std::min(bytes_, kReadAhead));
}

int FileRange::Read(int64_t begin, char* memory, int64_t bytes) const noexcept {
  if (!is_open()) return error_;
  const int64_t ahead = begin + kReadAhead;
  if (ahead < bytes_) {
    AdviseWillNeed(file_->descriptor(), offset_ + ahead, std::min(bytes, bytes_ - ahead));
  }
  return ReadBytes(file_->descriptor(), offset_ + begin, memory, bytes);
}

int FileRange::ReadAll(char* memory, int threads) const noexcept {
  Prefetch();
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

std::string FileRange::ProblemAfter(int error) const {
  if (error != 0) return error == kEnds ? "the file ends too early" : std::strerror(error);
  return file_->HasChanged() ? "the file has changed while it was read" : "";
}

}  // namespace relax_inplace
