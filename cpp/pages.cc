// mmap, and madvise and mremap as Linux has them. Elsewhere no tensor has pages of its own.
#include "pages.h"

#include <sys/mman.h>
#include <tvm/ffi/tvm_ffi.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <map>
#include <memory>
#include <mutex>
#include <string>

#include "file_range.h"

namespace relax_inplace {

static char* Map(int64_t bytes) {
  void* pages = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return pages == MAP_FAILED ? nullptr : static_cast<char*>(pages);
}

void Unread::RequireRead(int error) const {
  const std::string problem = file->ProblemAfter(error);
  if (problem.empty()) return;
  TVM_FFI_THROW(RuntimeError) << name << ": " << problem << ", expected to read the "
                              << file->bytes() << " bytes of the weight; download the file again";
}

ScratchPages::~ScratchPages() {
  if (data_ != nullptr) munmap(data_, std::max<int64_t>(bytes_, 1));
}

int64_t PageSize() {
  static const int64_t size = sysconf(_SC_PAGESIZE);
  return size;
}

#if defined(__linux__)

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP 4  // of Linux 5.7; older C libraries do not name it
#endif

bool CanGiveBackPages(DLDevice device) { return device.device_type == kDLCPU; }

void GiveBackPages(char* begin, char* end) {
  const uintptr_t page = static_cast<uintptr_t>(PageSize());
  const uintptr_t first = (reinterpret_cast<uintptr_t>(begin) + page - 1) / page * page;
  const uintptr_t last = reinterpret_cast<uintptr_t>(end) / page * page;
  // It may refuse (locked pages): nothing but resident memory depends on it.
  if (first < last) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

constexpr int64_t kLeast = int64_t{64} << 10;
/*! \brief Linux lets a process have 65,530 areas, of everything that is mapped. */
constexpr int64_t kMostAreas = int64_t{1} << 15;
constexpr int64_t kHugePage = int64_t{2} << 20;  // of x86, and of Arm with pages of 4 KB

/*! \brief All that are there, by their first byte. */
struct AllPages {
  std::mutex mutex;
  std::map<const char*, OwnedPages*> by_begin;
  int64_t areas = 0;  // of all of them

  static AllPages& Get() {
    static auto* all = new AllPages;  // a tensor may be freed when the process ends
    return *all;
  }
};

static int64_t RoundUp(int64_t number, int64_t multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

static char* RoundUp(char* address, int64_t multiple) {
  const auto number = static_cast<int64_t>(reinterpret_cast<uintptr_t>(address) % multiple);
  return address + (RoundUp(number, multiple) - number);
}

/*! \brief Whole pages, at an address of huge ones, and of those if the system has them. */
static char* MapHuge(int64_t bytes) {
  const int64_t more = kHugePage - PageSize();
  char* begin = Map(bytes + more);
  if (begin == nullptr) return nullptr;
  char* data = RoundUp(begin, kHugePage);
  char* end = begin + bytes + more;
  if (data > begin) munmap(begin, data - begin);
  if (data + bytes < end) munmap(data + bytes, end - (data + bytes));
  madvise(data, bytes, MADV_HUGEPAGE);  // a system without them refuses
  return data;
}

std::unique_ptr<OwnedPages> OwnedPages::Allocate(int64_t bytes) {
  if (bytes < kLeast) return nullptr;
  bytes = RoundUp(bytes, PageSize());
  char* data = bytes >= kHugePage ? MapHuge(bytes) : Map(bytes);
  if (data == nullptr) return nullptr;
  std::unique_ptr<OwnedPages> pages(new OwnedPages(data, bytes));
  if (!pages->MayGetAreas(1)) pages.reset();
  return pages;
}

// The system clears pages before it gives them, huge ones faster.
ScratchPages::ScratchPages(int64_t bytes)
    : bytes_(RoundUp(bytes, bytes >= kHugePage / 4 * 3 ? kHugePage : PageSize())),
      data_(bytes_ >= kHugePage ? MapHuge(bytes_) : Map(std::max<int64_t>(bytes_, 1))) {}

OwnedPages::OwnedPages(char* data, int64_t bytes) : data_(data), bytes_(bytes) {
  AllPages& all = AllPages::Get();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.by_begin.emplace(data_, this);
}

OwnedPages::~OwnedPages() {
  AllPages& all = AllPages::Get();
  {
    const std::lock_guard<std::mutex> lock(all.mutex);
    all.by_begin.erase(data_);  // first: others may be given the address
    all.areas -= areas_;
  }
  if (bytes_ > 0) munmap(data_, bytes_);
}

/*! \brief Counts areas, unless there are too many. */
bool OwnedPages::MayGetAreas(int64_t more) {
  AllPages& all = AllPages::Get();
  const std::lock_guard<std::mutex> lock(all.mutex);
  if (all.areas + more > kMostAreas) return false;
  all.areas += more;
  areas_ += more;
  return true;
}

OwnedPages* OwnedPages::At(const void* memory) {
  AllPages& all = AllPages::Get();
  const std::lock_guard<std::mutex> lock(all.mutex);
  auto next = all.by_begin.upper_bound(static_cast<const char*>(memory));
  if (next == all.by_begin.begin()) return nullptr;
  OwnedPages* pages = std::prev(next)->second;
  return memory < pages->data_ + pages->bytes_ ? pages : nullptr;
}

void SetSpent(const void* memory, bool is_spent) {
  OwnedPages* pages = OwnedPages::At(memory);
  if (pages == nullptr) return;
  if (pages->is_spent_ && !is_spent) pages->is_one_area_ = false;  // holes may have been moved out
  pages->is_spent_ = is_spent;
}

Unread* UnreadAt(const void* memory) {
  OwnedPages* pages = OwnedPages::At(memory);
  return pages != nullptr && pages->data_ == memory ? &pages->unread_ : nullptr;
}

static bool Remap(char* from, char* to, int64_t bytes) {
  // The source stays mapped, so that nobody is given its address before it is destroyed.
  constexpr int kHow = MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP;
  return mremap(from, bytes, bytes, kHow, to) != MAP_FAILED;
}

/*! \brief Whether this system moves pages as it should, tried once with two. */
static bool CanMovePages() {
  static const bool can = []() {
    const int64_t page = PageSize();
    char* pages = Map(2 * page);
    if (pages == nullptr) return false;
    pages[page] = 1;
    const bool moves = Remap(pages + page, pages, page) && pages[0] == 1 && pages[page] == 0;
    munmap(pages, 2 * page);
    return moves;
  }();
  return can;
}

bool MovePages(char* from, char* to, int64_t bytes) {
  const int64_t page = PageSize();
  if (bytes < kLeast || (to - from) % page != 0) return false;
  const OwnedPages* source = OwnedPages::At(from);
  OwnedPages* target = OwnedPages::At(to);
  // A range of several areas may be moved in part, and then fail.
  if (source == nullptr || target == nullptr || source == target || !source->is_spent_ ||
      !source->is_one_area_ || !CanMovePages()) {
    return false;
  }
  const int64_t head = RoundUp(from, page) - from;
  const int64_t whole = (bytes - head) / page * page;
  if (whole == 0 || !target->MayGetAreas(2)) return false;
  std::memcpy(to, from, head);
  std::memcpy(to + head + whole, from + head + whole, bytes - head - whole);
  target->is_one_area_ = false;
  if (!Remap(from + head, to + head, whole)) {
    const int error = errno;
    target->bytes_ = 0;  // it may have a hole, which another may be given: it stays
    TVM_FFI_THROW(RuntimeError) << "relax_inplace: out of memory: the system cannot move " << whole
                                << " bytes of pages (mremap: " << std::strerror(error) << ")";
  }
  return true;
}

#else  // macOS frees pages when memory is short, and counts them as resident until then

ScratchPages::ScratchPages(int64_t bytes)
    : bytes_(std::max<int64_t>(bytes, 1)), data_(Map(bytes_)) {}

bool CanGiveBackPages(DLDevice) { return false; }

void GiveBackPages(char*, char*) {}

std::unique_ptr<OwnedPages> OwnedPages::Allocate(int64_t) { return nullptr; }

OwnedPages::~OwnedPages() = default;

void SetSpent(const void*, bool) {}

Unread* UnreadAt(const void*) { return nullptr; }

bool MovePages(char*, char*, int64_t) { return false; }

#endif

}  // namespace relax_inplace
