// Moves in place: passes over the memory, of a part of it where all of it has no good divisors.
//
// A transposition (m, n) -> (n, m) of odd sizes leaves a few columns, or rows, aside. Columns: they
// are kept in scratch, rows close up, the rest is transposed, and they are its last rows. Rows:
// they are transposed into scratch, the rest is transposed in place, and its rows move apart for
// them.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>

#include "relayout.h"

namespace relax_inplace {

/*! \brief Copies that passes may cost before others are looked for, and what setting aside adds. */
constexpr double kSlow = 5;
constexpr double kCostOfAside = 1.5;

/*!
 * \brief What is left of a batched transposition when one side is cut to a multiple of a number.
 *        Nothing if the piece is none, or too much is left over.
 */
std::optional<InPlaceMove::Rest> InPlaceMove::RestOf(const Piece& piece, int64_t multiple,
                                                     bool is_of_rows, int64_t most_aside) {
  const size_t outer = piece.digits.size() - 2;
  if (piece.digits.size() < 2 || outer > 1 || piece.element % 8 != 0) return std::nullopt;
  const Digit& column = piece.digits[outer];
  const Digit& row = piece.digits[outer + 1];
  if (column.read != piece.element || row.into != piece.element || row.read < 0)
    return std::nullopt;
  if (outer == 1 && piece.digits[0].into != piece.digits[0].read) return std::nullopt;
  Rest rest{outer == 1 ? piece.digits[0].extent : 1,
            piece.element / 8,
            row.extent,
            column.extent,
            (is_of_rows ? row.extent : column.extent) % multiple,
            is_of_rows,
            {}};
  const int64_t rows = row.extent - (is_of_rows ? rest.rest : 0);
  const int64_t columns = column.extent - (is_of_rows ? 0 : rest.rest);
  if (rest.rest == 0 || rows == 0 || columns == 0 || rest.bytes() > most_aside) return std::nullopt;
  rest.main.element = piece.element;
  rest.main.digits = {{columns, rows * piece.element, piece.element},
                      {rows, piece.element, columns * piece.element}};
  rest.main = Normalised(rest.main);
  return rest;
}

InPlaceMove::InPlaceMove(const std::vector<Piece>& pieces, int threads, int64_t most_scratch)
    : threads_(threads), most_scratch_(most_scratch) {
  if (pieces.size() == 1) {
    PlanPiece(pieces.front());
    return;
  }
  int64_t bits = 0;
  for (const Piece& piece : pieces) {
    int64_t moved = piece.element;
    for (const Digit& digit : piece.digits) moved *= digit.extent;
    bits += moved;
  }
  const Blocks blocks = BlocksOf(pieces, bits / 8);
  if (blocks.bytes <= most_scratch / 9 * 8) {
    blocks_.emplace(blocks, threads, most_scratch);
    return;
  }
  units_.emplace(pieces, most_scratch);
  for (const Piece& piece : pieces) {
    if (piece.pattern != 0) reversals_.emplace_back(piece);
  }
}

void InPlaceMove::PlanPiece(Piece piece) {
  passes_.emplace(piece, threads_, most_scratch_);
  if (passes_->cost() <= kSlow) return;
  const int64_t most_aside = most_scratch_ / 4;
  double best = passes_->cost() - kCostOfAside;
  for (const int64_t bytes : {128, 256, 512, 1024}) {
    for (const bool is_of_rows : {false, true}) {
      const int64_t multiple = std::max<int64_t>(2, 8 * bytes / std::gcd(8 * bytes, piece.element));
      const std::optional<Rest> rest = RestOf(piece, multiple, is_of_rows, most_aside);
      if (!rest) continue;
      Passes passes(rest->main, threads_, most_scratch_ - most_aside);
      if (passes.cost() >= best) continue;
      best = passes.cost();
      rest_ = rest;
      passes_ = std::move(passes);
    }
  }
  if (!rest_) return;
  const int64_t rows = rest_->is_of_rows ? rest_->rest : rest_->rows;
  const int64_t columns = rest_->is_of_rows ? rest_->columns : rest_->rest;
  rest_move_.emplace(Piece{piece.element,
                           {{columns, rows * piece.element, piece.element},
                            {rows, piece.element, columns * piece.element}}});
  if (piece.pattern != 0) reversals_.emplace_back(piece);
}

int64_t InPlaceMove::ScratchBytes() const {
  if (blocks_) return blocks_->ScratchBytes();
  if (units_) return units_->ScratchBytes();
  return passes_->ScratchBytes() + (rest_ ? most_scratch_ / 4 : 0);
}

void InPlaceMove::RunBesideRest(char* memory, char* scratch) const noexcept {
  const Rest& rest = *rest_;
  char* aside = scratch;
  scratch += most_scratch_ / 4;
  const int64_t aside_row = rest.rest * rest.element;
  if (rest.is_of_rows) {
    const int64_t row = rest.rows * rest.element;  // of the output
    const int64_t kept = row - aside_row;
    rest_move_->RunInCache(memory + kept * rest.columns, aside);
    passes_->Run(memory, scratch);
    for (int64_t i = rest.columns; i-- > 0;) {
      std::memmove(memory + i * row, memory + i * kept, kept);
      std::memcpy(memory + i * row + kept, aside + i * aside_row, aside_row);
    }
  } else {
    const int64_t row = rest.columns * rest.element;  // of the input
    const int64_t kept = row - aside_row;
    for (int64_t i = 0; i < rest.rows; ++i) {
      std::memcpy(aside + i * aside_row, memory + i * row + kept, aside_row);
      std::memmove(memory + i * kept, memory + i * row, kept);
    }
    passes_->Run(memory, scratch);
    rest_move_->RunInCache(aside, memory + kept * rest.rows);
  }
}

void InPlaceMove::Run(char* memory, char* scratch) const noexcept {
  if (blocks_) {
    blocks_->Run(memory, scratch);
  } else if (units_) {
    units_->Run(memory, scratch, threads_);
  } else if (rest_) {
    const int64_t bytes = rest_->rows * rest_->columns * rest_->element;
    for (int64_t i = 0; i < rest_->batches; ++i) RunBesideRest(memory + i * bytes, scratch);
  } else {
    passes_->Run(memory, scratch);
  }
  for (const Reversal& reversal : reversals_) reversal.Run(memory, threads_);
}

}  // namespace relax_inplace
