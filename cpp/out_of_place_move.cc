// Moves of pieces to other memory.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "processors.h"
#include "register_transpose.h"
#include "relayout.h"

namespace relax_inplace {

constexpr int64_t kLine = 64;  // bytes of a cache line
/*! \brief Of an output as large as this, little would be left in a cache when it is read. */
constexpr int64_t kStreamFrom = int64_t{16} << 20;
/*!
 * \brief The most of a part: rows of the output, so that the addresses of their pages are known to
 *        the processor; columns; bytes of an element.
 */
constexpr int64_t kPartRows = 1024;
constexpr int64_t kPartColumns = 256;
constexpr int64_t kPartBytes = int64_t{1} << 20;
/*! \brief What a thread takes at once. */
constexpr int64_t kGrain = int64_t{256} << 10;
/*! \brief Of digits of 2 or more, no more fit into any memory; and those of a part. */
constexpr size_t kMostDigits = 63 + 3;

Piece Normalised(Piece piece) {
  std::vector<Digit> sorted = std::move(piece.digits);
  sorted.erase(std::remove_if(sorted.begin(), sorted.end(),
                              [](const Digit& digit) { return digit.extent == 1; }),
               sorted.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Digit& one, const Digit& other) { return one.into > other.into; });
  piece.digits.clear();
  for (const Digit& digit : sorted) {
    if (!piece.digits.empty()) {
      Digit& outer = piece.digits.back();
      if (outer.into == digit.into * digit.extent && outer.read == digit.read * digit.extent) {
        outer = {outer.extent * digit.extent, digit.into, digit.read};
        continue;
      }
    }
    piece.digits.push_back(digit);
  }
  while (!piece.digits.empty()) {
    const Digit& inner = piece.digits.back();
    if (inner.into != piece.element || inner.read != piece.element) break;
    piece.element *= inner.extent;
    piece.digits.pop_back();
  }
  return piece;
}

static int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

static bool IsOnLine(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kLine == 0;
}

/*! \brief Copies a line to the address of a line. */
static inline void StreamLine(char* target, const char* source) {
  for (int64_t i = 0; i < kLine; i += 16) base::Stream(target + i, base::Load(source + i));
}

/*!
 * \brief Moves a matrix of elements, element by element.
 * \tparam kElement Their bytes, or 0 for any number, `element`.
 */
template <int kElement>
static void MoveElements(const char* source, char* target, const Digit& rows, const Digit& columns,
                         int64_t element, bool streams) {
  const bool in_lines = streams && kElement == 0 && element % kLine == 0 && IsOnLine(target) &&
                        rows.into % kLine == 0 && columns.into % kLine == 0;
  constexpr int64_t kBlock = 8;  // columns: so many lines of the input stay in the first cache
  for (int64_t block = 0; block < columns.extent; block += kBlock) {
    const int64_t end = std::min(block + kBlock, columns.extent);
    for (int64_t row = 0; row < rows.extent; ++row) {
      for (int64_t column = block; column < end; ++column) {
        const char* from = source + row * rows.read + column * columns.read;
        char* to = target + row * rows.into + column * columns.into;
        if (in_lines) {
          for (int64_t i = 0; i < element; i += kLine) StreamLine(to + i, from + i);
        } else if constexpr (kElement > 0) {
          std::memcpy(to, from, kElement);
        } else {
          std::memcpy(to, from, element);
        }
      }
    }
  }
}

/*! \brief Transposes a matrix of units that lie side by side, in rows of the input and the output.
 */
template <int kUnit>
static void Transpose(const char* source, char* target, const Digit& rows, const Digit& columns,
                      bool streams) {
  constexpr int64_t kSquare = 16 / kUnit;
  const int64_t least = std::min(rows.extent, columns.extent);
  if (least >= kLine / kUnit) {
    const auto transpose = WidestRegister() == 64   ? avx512::TransposeMatrix<kUnit>
                           : WidestRegister() == 32 ? avx2::TransposeMatrix<kUnit>
                                                    : base::TransposeMatrix<kUnit>;
    transpose(source, columns.read, columns.extent, target, rows.into, rows.extent,
              streams && IsOnLine(target) && rows.into % kLine == 0);
  } else if (least >= kSquare) {
    base::Register made[kSquare];
    for (int64_t i = 0; i < columns.extent; i += kSquare) {
      const int64_t column = std::min(i, columns.extent - kSquare);
      for (int64_t j = 0; j < rows.extent; j += kSquare) {
        const int64_t row = std::min(j, rows.extent - kSquare);
        char* to = target + row * rows.into + column * kUnit;
        base::TransposeSquares<kUnit>(source + column * columns.read + row * kUnit, columns.read,
                                      made);
        for (int64_t k = 0; k < kSquare; ++k) base::Store(to + k * rows.into, made[k]);
      }
    }
  } else {
    MoveElements<kUnit>(source, target, rows, columns, kUnit, streams);
  }
}

OutOfPlaceMove::OutOfPlaceMove(const Piece& given) {
  const Piece piece = Normalised(given);
  element_ = piece.element;
  into_ = piece.into;
  read_ = piece.read;
  bytes_ = element_;
  for (const Digit& digit : piece.digits) bytes_ *= digit.extent;
  grid_ = piece.digits;
  columns_ = rows_ = {1, 0, 0};
  if (!grid_.empty()) {
    columns_ = grid_.back();
    grid_.pop_back();
    const auto nearest =
        std::min_element(grid_.begin(), grid_.end(), [](const Digit& one, const Digit& other) {
          return std::make_pair(one.read == 0, std::abs(one.read)) <
                 std::make_pair(other.read == 0, std::abs(other.read));
        });
    if (nearest != grid_.end() &&
        (columns_.read == 0 ||
         (nearest->read != 0 && std::abs(nearest->read) < std::abs(columns_.read)))) {
      rows_ = *nearest;
      grid_.erase(nearest);
    }
  }
  part_bytes_ = std::min(element_, kPartBytes);
  const int64_t most = std::max<int64_t>(1, kPartBytes / element_);
  part_rows_ = std::min({rows_.extent, kPartRows, most});
  part_columns_ = std::min(columns_.extent, std::max<int64_t>(kPartColumns, most / part_rows_));
  grid_.push_back(
      {CeilDiv(rows_.extent, part_rows_), rows_.into * part_rows_, rows_.read * part_rows_});
  grid_.push_back({CeilDiv(columns_.extent, part_columns_), columns_.into * part_columns_,
                   columns_.read * part_columns_});
  grid_.push_back({CeilDiv(element_, part_bytes_), part_bytes_, part_bytes_});
  parts_ = 1;
  for (const Digit& digit : grid_) parts_ *= digit.extent;
}

void OutOfPlaceMove::MovePart(const char* source, char* target, const int64_t* index,
                              bool streams) const {
  Digit rows = rows_;
  Digit columns = columns_;
  rows.extent = std::min(part_rows_, rows.extent - index[0] * part_rows_);
  columns.extent = std::min(part_columns_, columns.extent - index[1] * part_columns_);
  const int64_t bytes = std::min(part_bytes_, element_ - index[2] * part_bytes_);
  const bool is_transposition = rows.read == element_ && columns.into == element_;
#define RELAX_INPLACE_SIZE(size, transpose)                                               \
  case size:                                                                              \
    if (transpose && is_transposition)                                                    \
      return Transpose < transpose ? size : 1 > (source, target, rows, columns, streams); \
    return MoveElements<size>(source, target, rows, columns, size, streams)
  switch (element_) {
    RELAX_INPLACE_SIZE(1, true);
    RELAX_INPLACE_SIZE(2, true);
    RELAX_INPLACE_SIZE(3, false);
    RELAX_INPLACE_SIZE(4, true);
    RELAX_INPLACE_SIZE(6, false);
    RELAX_INPLACE_SIZE(8, true);
    RELAX_INPLACE_SIZE(12, false);
    RELAX_INPLACE_SIZE(16, true);
    RELAX_INPLACE_SIZE(32, false);
    default:
      return MoveElements<0>(source, target, rows, columns, bytes, streams);
  }
#undef RELAX_INPLACE_SIZE
}

void OutOfPlaceMove::MoveParts(const char* source, char* target, int64_t begin, int64_t end,
                               bool streams) const {
  std::array<int64_t, kMostDigits> index;
  source += read_;
  target += into_;
  int64_t left = begin;
  for (size_t i = grid_.size(); i-- > 0; left /= grid_[i].extent) {
    index[i] = left % grid_[i].extent;
    source += index[i] * grid_[i].read;
    target += index[i] * grid_[i].into;
  }
  for (int64_t part = begin; part < end; ++part) {
    MovePart(source, target, &index[grid_.size() - 3], streams);
    for (size_t i = grid_.size(); i-- > 0;) {  // the next part
      source += grid_[i].read;
      target += grid_[i].into;
      if (++index[i] < grid_[i].extent) break;
      source -= index[i] * grid_[i].read;
      target -= index[i] * grid_[i].into;
      index[i] = 0;
    }
  }
}

void OutOfPlaceMove::Run(const char* source, char* target, int threads) const {
  const bool streams = bytes_ >= kStreamFrom;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, bytes_ / parts_));
  ShareOut(threads, parts_, grain, [&](int, int64_t begin, int64_t end) {
    MoveParts(source, target, begin, end, streams);
    if (streams) base::EndStream();
  });
}

void OutOfPlaceMove::RunInCache(const char* source, char* target) const noexcept {
  MoveParts(source, target, 0, parts_, false);
}

}  // namespace relax_inplace
