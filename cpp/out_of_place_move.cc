// Moves of pieces to other memory: in runs of whole bytes, in tiles, or bit by bit.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <utility>
#include <vector>

#include "bit_runs.h"
#include "cache_lines.h"
#include "processors.h"
#include "relayout.h"

namespace relax_inplace {

/*! \brief Of an output as large as this, little would be left in a cache when it is read. */
constexpr int64_t kStreamFrom = int64_t{16} << 20;
/*!
 * \brief The most of a part: rows of the output, so that the addresses of their pages are known to
 *        the processor; columns; bytes.
 */
constexpr int64_t kPartRows = 1024;
constexpr int64_t kPartColumns = 256;
constexpr int64_t kPartBytes = int64_t{1} << 20;
/*! \brief What a thread takes at once. */
constexpr int64_t kGrain = int64_t{256} << 10;
/*! \brief Of digits of 2 or more, no more fit into any memory; and those of a part. */
constexpr size_t kMostDigits = 63 + 3;
/*! \brief Runs of as many bytes are copied as they are. */
constexpr int64_t kLongRun = 32;
/*! \brief Exponents of bits: of a line; that a tile should have; of the runs that it may have. */
constexpr int kLineBits = 9;
constexpr int kTileBits = 15;
constexpr int kTileRuns = 8;

int64_t PeriodOf(uint64_t pattern) {
  int64_t period = 64;
  while (period > 1 && (pattern >> (period / 2) ^ pattern) << (64 - period / 2) == 0) period /= 2;
  return period;
}

Piece Normalised(Piece piece) {
  const int64_t period = PeriodOf(piece.pattern);
  std::vector<Digit> sorted = std::move(piece.digits);
  sorted.erase(std::remove_if(sorted.begin(), sorted.end(),
                              [](const Digit& digit) { return digit.extent == 1; }),
               sorted.end());
  std::stable_sort(sorted.begin(), sorted.end(),
                   [](const Digit& one, const Digit& other) { return one.into > other.into; });
  piece.digits.clear();
  for (Digit& digit : sorted) {
    if (piece.fills) digit.read = digit.into;
    if (!piece.digits.empty()) {
      Digit& outer = piece.digits.back();
      if (outer.into == digit.into * digit.extent && outer.read == digit.read * digit.extent) {
        outer = {outer.extent * digit.extent, digit.into, digit.read};
        continue;
      }
    }
    piece.digits.push_back(digit);
  }
  while (!piece.digits.empty() && piece.element % period == 0) {
    const Digit& inner = piece.digits.back();
    if (inner.into != piece.element || inner.read != piece.element) break;
    piece.element *= inner.extent;
    piece.digits.pop_back();
  }
  return piece;
}

static int64_t Whole(int64_t bits) { return bits / 8; }  // bytes; also below 0

/*! \brief Moves a piece element by element; of each it moves `count` bits. */
static void MovePieceByBits(const Piece& piece, const char* source, int64_t read, char* target,
                            int64_t into, int64_t count) {
  std::array<int64_t, kMostDigits> index{};
  const char* from = piece.fills ? nullptr : source;
  for (;;) {
    MoveBits(from, read, target, into, count, piece.pattern);
    size_t i = piece.digits.size();
    for (;; index[i] = 0) {  // the next element
      if (i-- == 0) return;
      const Digit& digit = piece.digits[i];
      read += digit.read;
      into += digit.into;
      if (++index[i] < digit.extent) break;
      read -= digit.extent * digit.read;
      into -= digit.extent * digit.into;
    }
  }
}

// -- tiles
// -----------------------------------------------------------------------------------------

namespace {

/*! \brief A digit of a piece, of which 2^exponent are in a tile. */
struct TileDigit {
  Digit digit;
  int exponent = 0;

  int64_t size() const { return int64_t{1} << exponent; }
  bool is_whole() const { return size() == digit.extent; }
  /*! \brief From one tile to the next. */
  int64_t into() const { return digit.into * size(); }
  int64_t read() const { return digit.read * size(); }
};

/*! \brief Which digits are in a tile: whole lines of the input and the output, if it can be. */
class TilePlan {
 public:
  explicit TilePlan(const Piece& piece) : period_(PeriodOf(piece.pattern)) {
    digits.push_back({{piece.element, 1, 1}});
    for (size_t i = piece.digits.size(); i-- > 0;) digits.push_back({piece.digits[i]});
    rows = TakeLine(&Digit::read);
    columns = TakeLine(&Digit::into);
    if (rows >= 0 && digits[rows].is_whole()) rows = -1;
    if (columns >= 0 && digits[columns].is_whole()) columns = -1;
    if (rows == columns) rows = -1;
    if (columns < 0) columns = Nearest(&Digit::into, rows);
    if (rows < 0) rows = Nearest(&Digit::read, columns);
    Extend();
  }

  /*! \brief Whether all runs, and all steps between them, are of whole bytes. */
  bool IsPossible() const {
    for (const TileDigit& digit : digits) {
      if (!digit.is_whole() && (digit.into() % 8 != 0 || digit.read() % 8 != 0)) return false;
    }
    return ExchangedTile::IsPossible(Bits());
  }

  /*! \brief Whether it writes whole lines, from the address of a line on. */
  bool FillsLines() const {
    for (const TileDigit& digit : digits) {
      if (!digit.is_whole() && digit.into() % (8 * kLine) != 0) return false;
    }
    const std::vector<TileBit> bits = Bits();
    for (const TileBit& bit : bits) {
      if (bit.into >= 8 * kLine && bit.into % (8 * kLine) != 0) return false;
    }
    return ExchangedTile::RunOf(bits, &TileBit::into) >= kLineBits;
  }

  std::vector<TileBit> Bits() const {
    std::vector<TileBit> bits;
    for (const TileDigit& digit : digits) {
      for (int i = 0; i < digit.exponent; ++i) {
        bits.push_back(
            {digit.digit.into * (int64_t{1} << i), digit.digit.read * (int64_t{1} << i)});
      }
    }
    return bits;
  }

  std::vector<TileDigit> digits;  // the first is of the bits of an element
  int rows = -1;                  // the digit whose tiles are nearest in the input
  int columns = -1;               // and in the output; no other may have a rest

 private:
  /*!
   * \brief Takes digits whose bits lie together in the input, or in the output.
   * \return The last of them if it is cut, else -1.
   */
  int TakeLine(int64_t Digit::*step) {
    int taken = 0;
    while (taken < kLineBits) {
      const auto next = std::find_if(digits.begin(), digits.end(), [&](const TileDigit& digit) {
        return digit.digit.extent > 1 && std::abs(digit.digit.*step) == int64_t{1} << taken;
      });
      if (next == digits.end()) return -1;
      const Digit& digit = next->digit;
      int exponent = 0;
      while (exponent < kLineBits - taken && int64_t{2} << exponent <= digit.extent) ++exponent;
      // A last tile that is not full begins earlier: at a byte, and where the pattern begins.
      while ((digit.extent % (int64_t{1} << exponent)) * digit.into % 8 != 0 ||
             (digit.extent % (int64_t{1} << exponent)) * digit.read % 8 != 0 ||
             (next == digits.begin() && digit.extent % (int64_t{1} << exponent) % period_ != 0)) {
        --exponent;
      }
      next->exponent = std::max(next->exponent, exponent);
      taken += exponent;
      if (int64_t{1} << exponent < digit.extent) return static_cast<int>(next - digits.begin());
    }
    return -1;
  }

  int Nearest(int64_t Digit::*step, int but) const {
    int found = -1;
    for (int i = 0; i < static_cast<int>(digits.size()); ++i) {
      const int64_t far = std::abs(digits[i].digit.*step);
      if (i == but || digits[i].is_whole() || far == 0) continue;
      if (found < 0 || far < std::abs(digits[found].digit.*step)) found = i;
    }
    return found;
  }

  /*! \brief Makes one tile of several small ones, as long as there are not too many runs. */
  void Extend() {
    for (;;) {
      const std::vector<TileBit> bits = Bits();
      const int taken = static_cast<int>(bits.size());
      const int run = std::min(ExchangedTile::RunOf(bits, &TileBit::read),
                               ExchangedTile::RunOf(bits, &TileBit::into));
      if (taken >= kTileBits || taken - std::min(run, kLineBits) >= kTileRuns) return;
      TileDigit* best = nullptr;
      for (TileDigit& digit : digits) {
        if (digit.digit.extent % (2 * digit.size()) != 0) continue;
        if (best == nullptr || digit.into() < best->into()) best = &digit;
      }
      if (best == nullptr) return;
      ++best->exponent;
    }
  }

  int64_t period_;
};

}  // namespace

// -- cutting
// ---------------------------------------------------------------------------------------

OutOfPlaceMove::OutOfPlaceMove(const Piece& given, bool by_bits) : piece_(Normalised(given)) {
  bytes_ = piece_.element;
  for (const Digit& digit : piece_.digits) bytes_ *= digit.extent;
  bytes_ = (bytes_ + 7) / 8;
  if (by_bits || (!PlanRuns() && !PlanTiles())) PlanBits();
  parts_ = 1;
  for (const Digit& digit : grid_) parts_ *= digit.extent;
}

/*! \brief Counts parts of each; the last has what is left over, too. */
void OutOfPlaceMove::Cut(int64_t part_rows, int64_t part_columns, int64_t part_bits) {
  part_rows_ = part_rows;
  part_columns_ = part_columns;
  part_bits_ = part_bits;
  const auto cut = [&](const Digit& digit, int64_t part) {
    grid_.push_back(
        {std::max<int64_t>(1, digit.extent / part), digit.into * part, digit.read * part});
  };
  cut(rows_, part_rows);
  cut(columns_, part_columns);
  cut({piece_.element, 1, 1}, part_bits);
}

/*! \brief Long runs of bytes, or of no power of two. */
bool OutOfPlaceMove::PlanRuns() {
  const int64_t element = piece_.element;
  if (piece_.fills || piece_.pattern != 0 || element % 8 != 0) return false;
  if (element < 8 * kLongRun && (element & (element - 1)) == 0) return false;
  if (piece_.into % 8 != 0 || piece_.read % 8 != 0) return false;
  for (const Digit& digit : piece_.digits) {
    if (digit.into % 8 != 0 || digit.read % 8 != 0) return false;
  }
  way_ = Way::kRuns;
  grid_ = piece_.digits;
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
  const int64_t most = std::max<int64_t>(1, 8 * kPartBytes / element);
  const int64_t rows = std::min({rows_.extent, kPartRows, most});
  Cut(rows, std::min(columns_.extent, std::max(kPartColumns, most / rows)),
      std::min(element, 8 * kPartBytes));
  return true;
}

bool OutOfPlaceMove::PlanTiles() {
  if (piece_.fills || piece_.into % 8 != 0) return false;
  const TilePlan plan(piece_);
  if (!plan.IsPossible()) return false;
  const std::vector<TileBit> bits = plan.Bits();
  tile_.emplace(bits, piece_.pattern);
  if ((piece_.read + tile_->first) % 8 != 0) return false;
  piece_.read += tile_->first;
  way_ = Way::kTiles;
  fills_lines_ = plan.FillsLines();
  for (int i = static_cast<int>(plan.digits.size()); i-- > 0;) {
    const TileDigit& digit = plan.digits[i];
    if (i == plan.rows) {
      rows_ = digit.digit;
      tile_rows_ = digit.size();
    } else if (i == plan.columns) {
      columns_ = digit.digit;
      tile_columns_ = digit.size();
    } else if (!digit.is_whole()) {
      grid_.push_back({digit.digit.extent / digit.size(), digit.into(), digit.read()});
    }
  }
  const int64_t most = std::max<int64_t>(1, (8 * kPartBytes) >> bits.size());  // tiles of a part
  const int64_t rows = std::clamp<int64_t>(
      rows_.extent / tile_rows_, 1, std::min(most, std::max<int64_t>(1, kPartRows / tile_rows_)));
  const int64_t columns = std::max<int64_t>({1, kPartColumns / tile_columns_, most / rows});
  Cut(rows * tile_rows_, columns * tile_columns_, piece_.element);
  return true;
}

/*! \brief Parts that threads move at once write to no byte in common. */
void OutOfPlaceMove::PlanBits() {
  way_ = Way::kBits;
  const std::vector<Digit>& digits = piece_.digits;
  size_t outer = digits.size();
  for (size_t i = digits.size() + 1; i-- > 0;) {
    // Whether digits before i may be of parts: what the others reach is within a step of them.
    int64_t reach = piece_.into % 8 + piece_.element;
    for (size_t k = i; k < digits.size(); ++k) reach += digits[k].into * (digits[k].extent - 1);
    bool is_apart = true;
    for (size_t k = i; k-- > 0;) {
      is_apart = is_apart && digits[k].into % 8 == 0 && digits[k].into >= (reach + 7) / 8 * 8;
      reach += digits[k].into * (digits[k].extent - 1);
    }
    outer = i;
    if (is_apart) break;
  }
  grid_.assign(digits.begin(), digits.begin() + outer);
  piece_.digits.erase(piece_.digits.begin(), piece_.digits.begin() + outer);
  const bool is_cut = piece_.digits.empty() && piece_.into % 8 == 0;
  Cut(1, 1, is_cut ? std::min(piece_.element, 8 * kPartBytes) : piece_.element);
}

// -- moving
// ----------------------------------------------------------------------------------------

/*!
 * \brief Moves a matrix of runs.
 * \tparam kBytes Of a run, or 0 for any number, `bytes`.
 */
template <int kBytes>
static void MoveRuns(const char* source, char* target, const Digit& rows, const Digit& columns,
                     int64_t bytes, bool streams) {
  const Digit row{rows.extent, rows.into / 8, rows.read / 8};
  const Digit column{columns.extent, columns.into / 8, columns.read / 8};
  const bool in_lines = streams && kBytes == 0 && bytes % kLine == 0 && IsOnLine(target) &&
                        row.into % kLine == 0 && column.into % kLine == 0;
  constexpr int64_t kBlock = 8;  // columns: so many lines of the input stay in the first cache
  for (int64_t block = 0; block < column.extent; block += kBlock) {
    const int64_t end = std::min(block + kBlock, column.extent);
    for (int64_t i = 0; i < row.extent; ++i) {
      for (int64_t k = block; k < end; ++k) {
        const char* from = source + i * row.read + k * column.read;
        char* to = target + i * row.into + k * column.into;
        if (in_lines) {
          for (int64_t at = 0; at < bytes; at += 16) Stream(to + at, from + at);
        } else if constexpr (kBytes > 0) {
          std::memcpy(to, from, kBytes);
        } else {
          std::memcpy(to, from, bytes);
        }
      }
    }
  }
}

void OutOfPlaceMove::MoveTiles(const char* source, char* target, const Digit& rows,
                               const Digit& columns, CacheUse use) const {
  int64_t row = 0;
  int64_t column = 0;
  for (;;) {
    const char* from = source + Whole(column * columns.read + row * rows.read);
    char* to = target + Whole(column * columns.into + row * rows.into);
    // The last one may overlap the one before it.
    const bool is_last_row = row + tile_rows_ >= rows.extent;
    row = is_last_row ? 0 : std::min(row + tile_rows_, rows.extent - tile_rows_);
    const bool is_last = is_last_row && column + tile_columns_ >= columns.extent;
    if (is_last_row && !is_last) {
      column = std::min(column + tile_columns_, columns.extent - tile_columns_);
    }
    const char* later = source + Whole(column * columns.read + row * rows.read);
    tile_->Move(from, later, to, {use.streams && fills_lines_ && IsOnLine(to), use.is_near});
    if (is_last) return;
  }
}

void OutOfPlaceMove::MovePart(const char* source, int64_t read, char* target, int64_t into,
                              const int64_t* index, CacheUse use) const {
  // The last part of a digit is longer.
  const auto of_part = [&](int64_t extent, int64_t part, int i) {
    return index[i] + 1 == grid_[grid_.size() - 3 + i].extent ? extent - index[i] * part : part;
  };
  const Digit rows{of_part(rows_.extent, part_rows_, 0), rows_.into, rows_.read};
  const Digit columns{of_part(columns_.extent, part_columns_, 1), columns_.into, columns_.read};
  const int64_t bits = of_part(piece_.element, part_bits_, 2);
  if (way_ == Way::kBits) return MovePieceByBits(piece_, source, read, target, into, bits);
  source += Whole(read);
  target += Whole(into);
  if (way_ == Way::kTiles) return MoveTiles(source, target, rows, columns, use);
  switch (piece_.element / 8) {
    case 3:
      return MoveRuns<3>(source, target, rows, columns, 3, use.streams);
    case 6:
      return MoveRuns<6>(source, target, rows, columns, 6, use.streams);
    case 12:
      return MoveRuns<12>(source, target, rows, columns, 12, use.streams);
    case 32:
      return MoveRuns<32>(source, target, rows, columns, 32, use.streams);
    default:
      return MoveRuns<0>(source, target, rows, columns, bits / 8, use.streams);
  }
}

void OutOfPlaceMove::MoveParts(const char* source, char* target, int64_t begin, int64_t end,
                               CacheUse use) const {
  std::array<int64_t, kMostDigits> index;
  int64_t read = piece_.read;
  int64_t into = piece_.into;
  int64_t left = begin;
  for (size_t i = grid_.size(); i-- > 0; left /= grid_[i].extent) {
    index[i] = left % grid_[i].extent;
    read += index[i] * grid_[i].read;
    into += index[i] * grid_[i].into;
  }
  for (int64_t part = begin; part < end; ++part) {
    MovePart(source, read, target, into, &index[grid_.size() - 3], use);
    for (size_t i = grid_.size(); i-- > 0;) {  // the next part
      read += grid_[i].read;
      into += grid_[i].into;
      if (++index[i] < grid_[i].extent) break;
      read -= index[i] * grid_[i].read;
      into -= index[i] * grid_[i].into;
      index[i] = 0;
    }
  }
}

void OutOfPlaceMove::Run(const char* source, char* target, int threads) const {
  const bool streams = bytes_ >= kStreamFrom;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, bytes_ / parts_));
  ShareOut(threads, parts_, grain, [&](int, int64_t begin, int64_t end) {
    MoveParts(source, target, begin, end, {streams});
    if (streams) EndStream();
  });
}

void OutOfPlaceMove::RunInCache(const char* source, char* target, bool streams) const noexcept {
  MoveParts(source, target, 0, parts_, {streams, true});
  if (streams) EndStream();
}

static Piece WhereItWrites(Piece piece) {
  piece.read = piece.into;
  for (Digit& digit : piece.digits) digit.read = digit.into;
  return piece;
}

Reversal::Reversal(const Piece& piece) : move_(WhereItWrites(piece), true) {}

void Reversal::Run(char* memory, int threads) const noexcept {
  // Bit by bit it reads each before it writes it, once.
  move_.Run(memory, memory, threads);
}

}  // namespace relax_inplace
