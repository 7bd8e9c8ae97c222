// In place: a local pass, a permutation of units, a local pass; whichever of them there is need
// for.
//
// Let X be the digits in the order of the input and Y in that of the output. The units are digits
// that are in a suffix of X and in one of Y. A first pass, within blocks that are the suffix of X,
// puts them innermost; the units go where the suffix of Y is together; a last pass, within blocks
// of that, puts its digits in their order. Digits are cut in two where only a part is to be in a
// unit: in a transposition (m, n) -> (n, m), n = k * t, units are of t elements: (m, k, t) -> (k,
// m, t), and each block (m, t) -> (t, m).
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>

#include "processors.h"
#include "relayout.h"

namespace relax_inplace {

constexpr int64_t kGrain = int64_t{256} << 10;
/*! \brief Rows of a power of two would share few places of a cache. */
constexpr int64_t kPaddedRow = 512;
constexpr int64_t kPadding = 64;
/*! \brief Small blocks are moved together: so many bytes of them, at most. */
constexpr int64_t kTogether = int64_t{16} << 10;

Blocks BlocksOf(std::vector<Piece> pieces, int64_t bytes) {
  Blocks found{std::move(pieces), bytes, 1};
  for (;;) {
    std::vector<Piece>& all = found.pieces;
    if (all.front().digits.empty()) return found;
    const Digit first = all.front().digits.front();
    for (const Piece& piece : all) {
      if (piece.digits.empty()) return found;
      const Digit& digit = piece.digits.front();
      if (digit.extent != first.extent || digit.into != first.into || digit.read != first.into ||
          digit.extent * digit.into != 8 * found.bytes) {
        return found;
      }
    }
    int64_t together = 1;  // as many as are of whole bytes
    while (together * first.into % 8 != 0) together *= 2;
    if (first.extent % together != 0 || first.extent == together) return found;
    found.count *= first.extent / together;
    found.bytes /= first.extent / together;
    for (Piece& piece : all) {
      piece.digits.front().extent = together;
      if (together == 1) piece.digits.erase(piece.digits.begin());
    }
  }
}

LocalPass::LocalPass(const Blocks& blocks, int threads, int64_t most_scratch) {
  const int64_t together = std::clamp<int64_t>(kTogether / blocks.bytes, 1, blocks.count);
  block_ = together * blocks.bytes;
  blocks_ = blocks.count / together;
  tail_ = blocks.count % together * blocks.bytes;
  row_ = padded_row_ = blocks.bytes;
  std::vector<Piece> pieces = blocks.pieces;
  if (pieces.size() == 1 && !pieces.front().digits.empty()) {
    Piece& piece = pieces.front();
    const int64_t row = std::abs(piece.digits.back().read);
    if (row >= 8 * kPaddedRow && row % 8 == 0) {
      row_ = row / 8;
      padded_row_ = row_ + kPadding;
      piece.read = 0;
      for (Digit& digit : piece.digits) {
        if (std::abs(digit.read) >= row) digit.read = digit.read / row * (8 * padded_row_);
        if (digit.read < 0) piece.read -= digit.read * (digit.extent - 1);
      }
    }
  }
  const int64_t padded = blocks.bytes / row_ * padded_row_;
  scratch_ = (together * padded + kPadding - 1) / kPadding * kPadding;
  threads_ = static_cast<int>(std::clamp<int64_t>(most_scratch / scratch_, 1, threads));
  for (Piece& piece : pieces) {
    piece.digits.insert(piece.digits.begin(), {together, 8 * blocks.bytes, 8 * padded});
    moves_.emplace_back(piece);
    if (tail_ == 0) continue;
    piece.digits.front().extent = tail_ / blocks.bytes;
    tail_moves_.emplace_back(piece);
  }
}

void LocalPass::RunBlock(char* block, int64_t bytes, const std::vector<OutOfPlaceMove>& moves,
                         char* scratch) const noexcept {
  if (row_ == padded_row_) {
    std::memcpy(scratch, block, bytes);
  } else {
    for (int64_t row = 0; row < bytes / row_; ++row) {
      std::memcpy(scratch + row * padded_row_, block + row * row_, row_);
    }
  }
  for (const OutOfPlaceMove& move : moves) move.RunInCache(scratch, block);
}

void LocalPass::Run(char* memory, char* scratch) const noexcept {
  ShareOut(threads_, blocks_, std::max<int64_t>(1, kGrain / block_),
           [&](int thread, int64_t begin, int64_t end) {
             char* own = scratch + thread * scratch_;
             for (int64_t i = begin; i < end; ++i) {
               RunBlock(memory + i * block_, block_, moves_, own);
             }
           });
  if (tail_ > 0) RunBlock(memory + blocks_ * block_, tail_, tail_moves_, scratch);
}

namespace {

/*! \brief A digit, or the outer or inner part of one that was cut. */
struct Part {
  int64_t extent;
  bool is_flipped;
  bool is_in_unit;
};
using Order = std::vector<size_t>;  // of parts, the outermost first

/*! \brief The digits of a suffix of an order: from a digit on, of which it has an inner part. */
struct Suffix {
  size_t from;
  int64_t part;
  int64_t bits;
};

/*! \brief A way to cut a move into passes. */
struct Cut {
  std::vector<Part> parts;
  Order orders[4];  // before the first pass, and after each
  double cost;      // in copies of the memory
};

/*! \brief Finds the cheapest of all ways. */
class CutSearch {
 public:
  CutSearch(const Piece& piece, int threads, int64_t most_scratch)
      : piece_(piece), threads_(threads), most_block_(most_scratch / 9 * 8 * 8) {
    const std::vector<Digit>& digits = piece.digits;
    output_.resize(digits.size());
    std::iota(output_.begin(), output_.end(), 0);
    input_ = output_;
    std::sort(input_.begin(), input_.end(), [&](size_t one, size_t other) {
      return std::abs(digits[one].read) > std::abs(digits[other].read);
    });
  }

  Cut Best() {
    Cut best;
    best.cost = -1;
    for (const Suffix& of_input : Suffixes(input_)) {
      for (const Suffix& of_output : Suffixes(output_)) {
        const double least = LeastCost(of_input, of_output);
        if (best.cost >= 0 && least >= best.cost) continue;
        Cut cut = CutAt(of_input, of_output);
        if (best.cost < 0 || cut.cost < best.cost) best = std::move(cut);
      }
    }
    return best;
  }

 private:
  /*! \brief Suffixes that can be a block, of whole bytes; or that are none. */
  std::vector<Suffix> Suffixes(const Order& order) const {
    std::vector<Suffix> all = {{order.size(), 1, piece_.element}};
    int64_t inner = piece_.element;
    const auto add = [&](size_t from, int64_t part) {
      if (part * inner % 8 == 0) all.push_back({from, part, part * inner});
    };
    for (size_t i = order.size(); i-- > 0;) {
      const int64_t extent = piece_.digits[order[i]].extent;
      const int64_t most = std::min(extent, most_block_ / inner);
      for (int64_t divisor = 1; divisor <= extent / divisor; ++divisor) {
        if (extent % divisor != 0) continue;
        const int64_t other = extent / divisor;
        if (divisor > 1 && divisor <= most) add(i, divisor);
        if (other > divisor && other <= most) add(i, other);
      }
      if (extent > most) break;
      inner *= extent;
    }
    return all;
  }

  /*! \brief How much of a digit is in a suffix. */
  int64_t PartOf(size_t digit, const Order& order, const Suffix& suffix) const {
    const size_t at = std::find(order.begin(), order.end(), digit) - order.begin();
    if (at < suffix.from) return 1;
    return at == suffix.from ? suffix.part : piece_.digits[digit].extent;
  }

  /*! \brief How much of a digit is in a unit, which has what is in both suffixes. */
  int64_t PartInUnit(size_t digit, const Suffix& of_input, const Suffix& of_output) const {
    return std::gcd(PartOf(digit, input_, of_input), PartOf(digit, output_, of_output));
  }

  int64_t UnitBits(const Suffix& of_input, const Suffix& of_output) const {
    int64_t bits = piece_.element;
    for (size_t i = 0; i < piece_.digits.size(); ++i) bits *= PartInUnit(i, of_input, of_output);
    return bits;
  }

  // Costs are as measured: copies of the memory by memcpy.
  double CostOfBlocks(int64_t bits, bool is_first) const {
    const double megabytes = static_cast<double>(bits) / (8 << 20);
    const double cost = (is_first ? 1.1 : 1.4) + std::max(0.0, 0.15 * (megabytes - 1));
    const double threads = std::clamp<double>(most_block_ / bits, 1, threads_);
    return cost * std::min(threads_, 4) / std::min(threads, 4.0);
  }

  double CostOfUnits(int64_t bits) const {
    const double cost = 1 + 8 * 128.0 / static_cast<double>(bits);
    return bits % 8 == 0 ? cost : cost * 2 * threads_;  // by one thread, each by masks
  }

  /*! \brief Rows of less than a line are moved in smaller squares, or by element. */
  double Slowdown(const Order& order, const Suffix& suffix) const {
    if (suffix.from == order.size()) return 1;
    const Digit& digit = piece_.digits[order[suffix.from]];
    return suffix.part < digit.extent && suffix.part * piece_.element < 8 * 64 ? 3 : 1;
  }

  double CostOfFirst(const Suffix& of_input) const {
    return CostOfBlocks(of_input.bits, true) * Slowdown(input_, of_input);
  }
  double CostOfLast(const Suffix& of_output) const {
    return CostOfBlocks(of_output.bits, false) * Slowdown(output_, of_output);
  }

  double LeastCost(const Suffix& of_input, const Suffix& of_output) const {
    const int64_t unit = UnitBits(of_input, of_output);
    double cost = 0;
    if (of_input.bits > unit || of_output.bits > unit) cost += CostOfUnits(unit);
    if (of_input.bits > unit) cost += CostOfFirst(of_input);
    if (of_output.bits > unit) cost += CostOfLast(of_output);
    return cost;
  }

  Cut CutAt(const Suffix& of_input, const Suffix& of_output) const {
    Cut cut;
    const int64_t unit = UnitBits(of_input, of_output);
    const bool has_first = of_input.bits > unit;
    // Where there is no first pass, the units are as they are in the input.
    std::vector<Order> parts_of(piece_.digits.size());
    bool flips_unit = false;
    for (size_t i = 0; i < piece_.digits.size(); ++i) {
      const bool is_flipped = piece_.digits[i].read < 0;
      const int64_t extent = piece_.digits[i].extent;
      // Cut where any of the three is.
      int64_t cuts[] = {PartInUnit(i, of_input, of_output), PartOf(i, input_, of_input),
                        PartOf(i, output_, of_output), extent};
      std::sort(std::begin(cuts), std::end(cuts));
      int64_t inner = 1;
      for (const int64_t at : cuts) {
        if (at == inner || at % inner != 0) continue;
        parts_of[i].insert(parts_of[i].begin(), cut.parts.size());
        cut.parts.push_back({at / inner, is_flipped, at <= PartInUnit(i, of_input, of_output)});
        flips_unit = flips_unit || (is_flipped && cut.parts.back().is_in_unit);
        inner = at;
      }
    }
    const auto order_of = [&](const Order& digits, auto&& is_wanted) {
      Order order;
      for (const size_t digit : digits) {
        for (const size_t part : parts_of[digit]) {
          if (is_wanted(cut.parts[part])) order.push_back(part);
        }
      }
      return order;
    };
    const auto all = [](const Part&) { return true; };
    const auto in_unit = [](const Part& part) { return part.is_in_unit; };
    const auto outside = [](const Part& part) { return !part.is_in_unit; };
    const Order units = order_of(has_first ? output_ : input_, in_unit);
    cut.orders[0] = order_of(input_, all);
    cut.orders[1] = order_of(input_, outside);
    cut.orders[2] = order_of(output_, outside);
    cut.orders[3] = order_of(output_, all);
    bool moves_units = cut.orders[1] != cut.orders[2];
    for (const size_t part : cut.orders[1]) moves_units = moves_units || cut.parts[part].is_flipped;
    cut.orders[1].insert(cut.orders[1].end(), units.begin(), units.end());
    cut.orders[2].insert(cut.orders[2].end(), units.begin(), units.end());
    cut.cost = 0;
    if (cut.orders[0] != cut.orders[1] || flips_unit) cut.cost += CostOfFirst(of_input);
    if (moves_units) cut.cost += CostOfUnits(unit);
    if (cut.orders[2] != cut.orders[3]) cut.cost += CostOfLast(of_output);
    return cut;
  }

  const Piece& piece_;
  int threads_;
  int64_t most_block_;  // bits that fit into scratch with what pads its rows there
  Order input_;
  Order output_;
};

/*!
 * \brief The move of a pass, from one order of the parts to another.
 * \param flips Which of the parts that are flipped the pass flips.
 */
template <typename F>
Piece PieceBetween(int64_t element, const Cut& cut, int pass, F&& flips) {
  const auto strides_of = [&](const Order& order) {
    std::vector<int64_t> strides(cut.parts.size());
    int64_t stride = element;
    for (size_t i = order.size(); i-- > 0; stride *= cut.parts[order[i]].extent) {
      strides[order[i]] = stride;
    }
    return strides;
  };
  const std::vector<int64_t> read = strides_of(cut.orders[pass]);
  const std::vector<int64_t> into = strides_of(cut.orders[pass + 1]);
  Piece piece;
  piece.element = element;
  for (size_t i = 0; i < cut.parts.size(); ++i) {
    const Part& part = cut.parts[i];
    if (part.is_flipped && flips(part)) {
      piece.digits.push_back({part.extent, into[i], -read[i]});
      piece.read += read[i] * (part.extent - 1);
    } else {
      piece.digits.push_back({part.extent, into[i], read[i]});
    }
  }
  return Normalised(piece);
}

}  // namespace

Passes::Passes(const Piece& given, int threads, int64_t most_scratch) : threads_(threads) {
  Piece piece = given;
  piece.pattern = 0;
  int64_t bits = piece.element;
  for (const Digit& digit : piece.digits) bits *= digit.extent;
  const Cut cut = CutSearch(piece, threads, most_scratch).Best();
  Piece before =
      PieceBetween(piece.element, cut, 0, [](const Part& part) { return part.is_in_unit; });
  const Piece units =
      PieceBetween(piece.element, cut, 1, [](const Part& part) { return !part.is_in_unit; });
  Piece after = PieceBetween(piece.element, cut, 2, [](const Part&) { return false; });
  cost_ = cut.cost;
  const bool has_before = !before.digits.empty();
  const bool has_after = !after.digits.empty();
  // Elements stay together: any pass can put the pattern on them.
  if (has_after) {
    after.pattern = given.pattern;
  } else if (has_before) {
    before.pattern = given.pattern;
  } else if (given.pattern != 0) {
    reversal_.emplace(Piece{bits, {}, 0, 0, given.pattern});
  }
  if (has_before) before_.emplace(BlocksOf({before}, bits / 8), threads, most_scratch);
  if (!units.digits.empty()) units_.emplace(std::vector<Piece>{units}, most_scratch);
  if (has_after) after_.emplace(BlocksOf({after}, bits / 8), threads, most_scratch);
}

int64_t Passes::ScratchBytes() const {
  int64_t most = 0;
  if (before_) most = std::max(most, before_->ScratchBytes());
  if (units_) most = std::max(most, units_->ScratchBytes());
  if (after_) most = std::max(most, after_->ScratchBytes());
  return most;
}

void Passes::Run(char* memory, char* scratch) const noexcept {
  if (before_) before_->Run(memory, scratch);
  if (units_) units_->Run(memory, scratch, threads_);
  if (after_) after_->Run(memory, scratch);
  if (reversal_) reversal_->Run(memory, threads_);
}

}  // namespace relax_inplace
