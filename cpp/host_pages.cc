// madvise as Linux has it.
#include "host_pages.h"

#include <tvm/ffi/tvm_ffi.h>

#include <cstdint>

#if defined(__linux__)
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

}  // namespace relax_inplace
