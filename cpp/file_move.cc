// From a file to where the bytes belong, in one pass over memory.
//
// Digits are sorted by their steps in the file, the longest first. A slab has one value of each of
// the first digits, a range of the next one, and all values of the others: its bytes are together
// in the file. A slab is read into scratch that stays in a cache, and moved from there. Long runs
// are read to where they belong.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <numeric>
#include <optional>
#include <utility>
#include <vector>

#include "file_range.h"
#include "processors.h"
#include "relayout.h"

namespace relax_inplace {

/*! \brief Slabs are of two lines of each row of the output, in these bounds; at least of one. */
constexpr int64_t kSmallSlab = int64_t{512} << 10;
constexpr int64_t kLargeSlab = int64_t{1} << 20;
constexpr int64_t kMostSlab = int64_t{2} << 20;
constexpr int64_t kLongRun = int64_t{256} << 10;
constexpr int64_t kLine = 64;

std::optional<FileMove> FileMove::Of(const Piece& given, int threads, int64_t most_scratch) {
  Piece piece = given;
  std::sort(piece.digits.begin(), piece.digits.end(),
            [](const Digit& one, const Digit& other) { return one.read > other.read; });
  FileMove found;
  int64_t bits = piece.element;
  int64_t reach = piece.element;
  for (const Digit& digit : piece.digits) {
    bits *= digit.extent;
    reach += digit.into * (digit.extent - 1);
  }
  found.bytes_ = reach == bits ? bits / 8 : 0;
  found.threads_ = threads;
  const int64_t scratch = 8 * std::min(kMostSlab, most_scratch / threads / kLine * kLine);
  const bool is_of_runs = piece.element >= std::min(8 * kLongRun, scratch) &&
                          piece.element % 8 == 0 && piece.pattern == 0;
  const int64_t most = is_of_runs ? 8 * kMostSlab : scratch;
  // A slab of runs is of one of them, or of a part of it.
  size_t at = is_of_runs ? piece.digits.size() : 0;
  if (is_of_runs) piece.digits.push_back({piece.element / 8, 8, 8});
  while (at < piece.digits.size() && piece.digits[at].read > most) ++at;
  if (at == piece.digits.size() || piece.digits[at].read % 8 != 0) return std::nullopt;
  found.outer_.assign(piece.digits.begin(), piece.digits.begin() + at);
  found.cut_ = piece.digits[at];
  const int64_t step = found.cut_.into;
  // Whole lines, if so many fit; else at least whole bytes.
  const int64_t line = 8 * kLine / std::gcd(8 * kLine, step);
  const int64_t byte = 8 / std::gcd(int64_t{8}, step);
  const int64_t lines = line * found.cut_.read;
  const int64_t wanted = std::max(lines, std::clamp(2 * lines, 8 * kSmallSlab, 8 * kLargeSlab));
  const int64_t slab = std::min(most, wanted);
  int64_t rows = std::min(std::max<int64_t>(1, slab / found.cut_.read), found.cut_.extent);
  if (rows < found.cut_.extent) rows -= rows % (rows >= line ? line : byte);
  // No two slabs write to one byte: what is from one slab to the next, or to what lies between them
  // in the output, is whole bytes.
  bool is_apart = rows > 0 && piece.into % 8 == 0;
  for (size_t i = 0; i < piece.digits.size(); ++i) {
    const Digit& digit = piece.digits[i];
    if (i < at) found.slabs_ *= digit.extent;
    is_apart = is_apart && ((i >= at && digit.into <= step) || digit.into % 8 == 0);
  }
  if (!is_apart) return std::nullopt;
  const auto move_of = [&](int64_t extent) -> std::optional<OutOfPlaceMove> {
    if (is_of_runs || extent == 0) return std::nullopt;
    Piece slab = piece;
    slab.into = 0;
    slab.digits.erase(slab.digits.begin(), slab.digits.begin() + at);
    slab.digits.front().extent = extent;
    return OutOfPlaceMove(Normalised(std::move(slab)));
  };
  const int64_t last = found.cut_.extent % rows;
  found.move_ = move_of(rows);
  found.last_move_ = move_of(last);
  found.slab_bytes_ = rows * found.cut_.read / 8;
  found.last_bytes_ = last == 0 ? found.slab_bytes_ : last * found.cut_.read / 8;
  found.cut_ = {(found.cut_.extent + rows - 1) / rows, rows * step, rows * found.cut_.read};
  found.slabs_ *= found.cut_.extent;
  found.into_ = piece.into;
  found.scratch_ = is_of_runs ? 0 : (found.slab_bytes_ + kLine - 1) / kLine * kLine;
  return found;
}

int FileMove::RunSlab(const FileRange& file, char* target, char* scratch,
                      int64_t slab) const noexcept {
  const int64_t part = slab % cut_.extent;
  int64_t read = part * cut_.read;
  int64_t into = into_ + part * cut_.into;
  int64_t left = slab / cut_.extent;
  for (size_t i = outer_.size(); i-- > 0; left /= outer_[i].extent) {
    read += left % outer_[i].extent * outer_[i].read;
    into += left % outer_[i].extent * outer_[i].into;
  }
  const bool is_last = part + 1 == cut_.extent;
  const int64_t bytes = is_last ? last_bytes_ : slab_bytes_;
  char* to = target + into / 8;
  if (scratch_ == 0) return file.Read(read / 8, to, bytes);
  const int error = file.Read(read / 8, scratch, bytes);
  if (error == 0) (is_last && last_move_ ? *last_move_ : *move_).RunInCache(scratch, to, true);
  return error;
}

/*!
 * \brief Has the system give the pages of memory that is to be overwritten, each to one thread:
 *        slabs are written to all of them, and two threads would clear the same one at once.
 */
static void TouchPages(char* memory, int64_t bytes, int threads) {
  constexpr int64_t kHugePage = int64_t{2} << 20;
  constexpr int64_t kPage = int64_t{4} << 10;  // others are multiples
  ShareOut(threads, (bytes + kHugePage - 1) / kHugePage, 1, [&](int, int64_t begin, int64_t end) {
    const int64_t last = std::min(end * kHugePage, bytes);
    volatile char* pages = memory;
    for (int64_t at = begin * kHugePage; at < last; at += kPage) pages[at] = 0;
  });
}

int FileMove::Run(const FileRange& file, char* target, char* scratch) const noexcept {
  file.Prefetch();
  if (scratch_ != 0) TouchPages(target + into_ / 8, bytes_, threads_);
  std::atomic<int> error{0};
  ShareOut(threads_, slabs_, 1, [&](int thread, int64_t begin, int64_t end) {
    for (int64_t slab = begin; slab < end && error == 0; ++slab) {
      const int found = RunSlab(file, target, scratch + thread * scratch_, slab);
      if (found != 0) error = found;
    }
  });
  return error;
}

}  // namespace relax_inplace
