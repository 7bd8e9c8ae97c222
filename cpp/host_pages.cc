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

/*!
 * \brief Advises the system about the whole pages in [begin, end).
 *
 * It may refuse (locked pages, a kernel without huge ones): nothing but memory and time depends on
 * it.
 */
static void Advise(char* begin, char* end, uintptr_t page, int advice) {
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / page * page;
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, advice);
}

void GiveBackPages(char* begin, char* end) {
  Advise(begin, end, static_cast<uintptr_t>(PageSize()), MADV_DONTNEED);
}

void PreferHugePages(char* begin, char* end) {
  Advise(begin, end, uintptr_t{2} << 20, MADV_HUGEPAGE);  // x86-64's, and AArch64's as a rule
}

#else  // macOS frees such pages when memory is short, and counts them as resident until then.

int64_t PageSize() { return 4096; }

bool CanGiveBackPages(DLDevice) { return false; }

void GiveBackPages(char*, char*) {}

void PreferHugePages(char*, char*) {}

#endif

}  // namespace relax_inplace
