// madvise as Linux has it, and mmap.
#include "host_pages.h"

#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <new>

#if defined(__unix__) || defined(__APPLE__)
#include <sys/mman.h>
#include <unistd.h>
#endif

namespace relax_inplace {

#if defined(__linux__)

int64_t PageSize() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

bool CanGiveBackPages(DLDevice device) { return device.device_type == kDLCPU; }

void GiveBackPages(char* begin, char* end) {
  const uintptr_t page = static_cast<uintptr_t>(PageSize());
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / page * page;
  // It may refuse (locked pages): nothing but resident memory depends on it.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

#else  // macOS frees such pages when memory is short, and counts them as resident until then.

int64_t PageSize() { return 4096; }

bool CanGiveBackPages(DLDevice) { return false; }

void GiveBackPages(char*, char*) {}

#endif

#if defined(__unix__) || defined(__APPLE__)

#if defined(MAP_POPULATE)
constexpr int kAtOnce = MAP_POPULATE;  // one call of the system for all pages
#else
constexpr int kAtOnce = 0;
#endif

ScratchPages::ScratchPages(int64_t bytes) : bytes_(std::max<int64_t>(bytes, 1)) {
  void* pages =
      mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | kAtOnce, -1, 0);
  data_ = pages == MAP_FAILED ? nullptr : static_cast<char*>(pages);
}

ScratchPages::~ScratchPages() {
  if (data_ != nullptr) munmap(data_, bytes_);
}

#else

constexpr std::align_val_t kPage{4096};

ScratchPages::ScratchPages(int64_t bytes)
    : bytes_(bytes), data_(static_cast<char*>(::operator new(bytes, kPage, std::nothrow))) {}

ScratchPages::~ScratchPages() { ::operator delete(data_, kPage); }

#endif

}  // namespace relax_inplace
