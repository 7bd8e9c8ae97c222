// A move of bits in host memory that is described by numbers, and how it is carried out.
//
// A move is pieces. A piece is a loop nest: one digit is one loop, and the innermost statement
// copies an element, a run of bits. With i_d in [0, extent_d) for each digit d, the element at bit
//
//   into + sum(d.into * i_d)   of the output is the one at bit   read + sum(d.read * i_d)
//
// of the input, xor a pattern; or the pattern alone. Bits are counted from the lowest of the first
// byte on. A digit that is not read (0) repeats what is; one that is read backwards (below 0) flips
// an axis.
#ifndef RELAX_INPLACE_RELAYOUT_H_
#define RELAX_INPLACE_RELAYOUT_H_

#include <cstdint>
#include <optional>
#include <vector>

#include "exchanged_tile.h"
#include "file_range.h"

namespace relax_inplace {

struct Digit {
  int64_t extent;
  int64_t into;
  int64_t read;
};

struct Piece {
  int64_t element;  // bits
  std::vector<Digit> digits;
  int64_t into = 0;
  int64_t read = 0;
  uint64_t pattern = 0;  // of bit k of an element: bit k % 64
  bool fills = false;    // with the pattern; nothing is read
};

/*! \brief The least power of two of bits after which a pattern repeats. */
int64_t PeriodOf(uint64_t pattern);

/*!
 * \brief The same move with the largest element and the fewest digits, in the order of the output,
 *        the outermost first.
 * \param piece Extents are above 0, and `into` of a digit of more than 1. An element is whole
 *        periods of the pattern.
 */
Piece Normalised(Piece piece);

/*! \brief A piece cut into parts, each of which is moved to other memory at once. */
class OutOfPlaceMove {
 public:
  /*! \param by_bits Whether each bit is to be written once, for a target that is the source. */
  explicit OutOfPlaceMove(const Piece& piece, bool by_bits = false);

  /*! \brief Moves the piece from one memory to another that does not overlap. */
  void Run(const char* source, char* target, int threads) const;

  /*!
   * \brief The same on this thread, from a source that is in a cache.
   * \param streams Whether the target is large, and not read again soon.
   */
  void RunInCache(const char* source, char* target, bool streams = false) const noexcept;

 private:
  enum class Way { kRuns, kTiles, kBits };

  bool PlanRuns();
  bool PlanTiles();
  void PlanBits();
  void Cut(int64_t part_rows, int64_t part_columns, int64_t part_bits);
  void MoveParts(const char* source, char* target, int64_t begin, int64_t end, CacheUse use) const;
  void MovePart(const char* source, int64_t read, char* target, int64_t into, const int64_t* index,
                CacheUse use) const;
  void MoveTiles(const char* source, char* target, const Digit& rows, const Digit& columns,
                 CacheUse use) const;

  Piece piece_;  // of kBits: of a part
  Way way_;
  int64_t bytes_;
  Digit rows_ = {1, 0, 0};     // of the output: the digit with the shortest step in the input
  Digit columns_ = {1, 0, 0};  // the one with the shortest step in the output
  std::vector<Digit> grid_;    // counts parts; the last three: of rows, of columns, of an element
  int64_t part_rows_;
  int64_t part_columns_;
  int64_t part_bits_;
  int64_t parts_;
  std::optional<ExchangedTile> tile_;
  int64_t tile_rows_ = 1;  // so many of a digit are in a tile
  int64_t tile_columns_ = 1;
  bool fills_lines_ = false;
};

/*! \brief A piece that is read from a file, slab by slab, and moved out of a cache. */
class FileMove {
 public:
  /*!
   * \param piece Normalised. It reads all bits from 0 on, each once, and none backwards; the steps
   *        of its digits are nested, on both sides.
   * \return None if there are no slabs of whole bytes that fit into scratch.
   */
  static std::optional<FileMove> Of(const Piece& piece, int threads, int64_t most_scratch);

  int64_t ScratchBytes() const { return threads_ * scratch_; }

  /*! \return As FileRange::Read; then the target is overwritten in part. */
  int Run(const FileRange& file, char* target, char* scratch) const noexcept;

 private:
  FileMove() = default;
  int RunSlab(const FileRange& file, char* target, char* scratch, int64_t slab) const noexcept;

  int threads_;
  int64_t scratch_;  // bytes, of a thread; 0 if it is read to where it belongs
  int64_t slabs_ = 1;
  int64_t into_;              // of all of them
  int64_t bytes_;             // of the output, if they are together; else 0
  std::vector<Digit> outer_;  // of the first bits of slabs, the one with the longest step first
  Digit cut_;                 // of slabs along one digit, within those
  int64_t slab_bytes_;
  int64_t last_bytes_;  // along cut_
  std::optional<OutOfPlaceMove> move_;
  std::optional<OutOfPlaceMove> last_move_;
};

/*! \brief A pattern, put on what is at the places that a piece writes, whichever it reads. */
class Reversal {
 public:
  explicit Reversal(const Piece& piece);

  void Run(char* memory, int threads) const noexcept;

 private:
  OutOfPlaceMove move_;
};

/*! \brief A permutation of units of equal size in one memory, by following its cycles. */
class UnitPermutation {
 public:
  /*!
   * \param pieces Together a permutation, from and to bit 0; patterns are not looked at. The steps
   *        of the digits of each are nested, on both sides.
   */
  UnitPermutation(const std::vector<Piece>& pieces, int64_t most_scratch);

  int64_t ScratchBytes() const;

  void Run(char* memory, char* scratch, int threads) const noexcept;

 private:
  struct Segment;
  struct Batch;
  class Finder;
  /*! \brief A digit, of units; `inverse` is 2^64 / extent, rounded up. */
  struct Step {
    int64_t extent;
    int64_t read;
    uint64_t inverse;
  };

  int64_t Source(int64_t place) const;
  int64_t SourceInPieces(int64_t place) const;
  void MoveUnit(char* target, int64_t into, const char* source, int64_t read, int64_t bytes) const;
  void Save(char* saves, int64_t save, const char* memory, int64_t place, int64_t bytes) const;
  void MoveSegment(char* memory, const Batch& batch, const Segment& segment, const char* saves,
                   int64_t bytes) const;
  void MoveChunk(char* memory, char* scratch, int64_t bytes, int threads) const noexcept;

  int64_t unit_;  // bytes; 0 if it is less than one
  int64_t unit_bits_;
  std::vector<Piece> pieces_;  // of units; none if it is one piece:
  std::vector<Step> steps_;    // the innermost first
  int64_t read_ = 0;
  int64_t units_;
  int64_t window_;  // units that are marked as visited at a time, a bit each
  int64_t batch_;   // places that are found before their units are moved
};

/*! \brief Pieces that are the same in each block of a memory. */
struct Blocks {
  std::vector<Piece> pieces;  // within one
  int64_t bytes;              // of one
  int64_t count;
};

/*! \brief The smallest blocks of whole bytes. The pieces are normalised, of a permutation. */
Blocks BlocksOf(std::vector<Piece> pieces, int64_t bytes);

/*! \brief A permutation of the bits of each block of a memory, through scratch. */
class LocalPass {
 public:
  LocalPass(const Blocks& blocks, int threads, int64_t most_scratch);

  int64_t ScratchBytes() const { return threads_ * scratch_; }

  void Run(char* memory, char* scratch) const noexcept;

 private:
  void RunBlock(char* block, int64_t bytes, const std::vector<OutOfPlaceMove>& moves,
                char* scratch) const noexcept;

  int64_t block_;  // bytes, of one or of several that are moved together
  int64_t blocks_;
  int64_t tail_;  // bytes of what is left over
  int64_t row_;   // bytes that lie together in scratch
  int64_t padded_row_;
  int64_t scratch_;  // bytes of a block there
  int threads_;
  std::vector<OutOfPlaceMove> moves_;  // from scratch to a block
  std::vector<OutOfPlaceMove> tail_moves_;
};

/*! \brief A permutation of the bits of one memory, as up to three passes over it. */
class Passes {
 public:
  /*! \param piece Normalised, of a permutation, from and to bit 0. */
  Passes(const Piece& piece, int threads, int64_t most_scratch);

  int64_t ScratchBytes() const;

  /*! \brief In times of a copy of the memory, about. */
  double cost() const { return cost_; }

  /*! \param scratch At an address of 64 bytes. */
  void Run(char* memory, char* scratch) const noexcept;

 private:
  int threads_;
  double cost_;
  std::optional<LocalPass> before_;
  std::optional<UnitPermutation> units_;
  std::optional<LocalPass> after_;
  std::optional<Reversal> reversal_;
};

/*! \brief A permutation of the bits of one memory, by bounded scratch. */
class InPlaceMove {
 public:
  /*!
   * \param pieces Normalised, together a permutation, from and to bit 0, of whole bytes. The steps
   *        of the digits of each are nested, on both sides.
   * \param most_scratch kLeastScratch or more, a multiple of 256.
   */
  InPlaceMove(const std::vector<Piece>& pieces, int threads, int64_t most_scratch);

  /*! \brief Of all threads together: `most_scratch` or less. */
  int64_t ScratchBytes() const;

  /*! \param scratch At an address of 64 bytes. */
  void Run(char* memory, char* scratch) const noexcept;

 private:
  /*! \brief What is left of a transposition without the rows or columns that are set aside. */
  struct Rest {
    int64_t batches;
    int64_t element;  // bytes
    int64_t rows;     // of the input, all of them
    int64_t columns;  // all of them
    int64_t rest;     // how many are set aside
    bool is_of_rows;
    Piece main;  // without them

    int64_t bytes() const { return element * rest * (is_of_rows ? columns : rows); }
  };

  static std::optional<Rest> RestOf(const Piece& piece, int64_t multiple, bool is_of_rows,
                                    int64_t most_aside);
  void PlanPiece(Piece piece);
  void RunBesideRest(char* memory, char* scratch) const noexcept;

  int threads_;
  int64_t most_scratch_;
  // Of one piece: all of it, or without a rest. Of several: in blocks, or in units.
  std::optional<Passes> passes_;
  std::optional<Rest> rest_;
  std::optional<OutOfPlaceMove> rest_move_;
  std::optional<LocalPass> blocks_;
  std::optional<UnitPermutation> units_;
  std::vector<Reversal> reversals_;
};

/*! \brief What any permutation can do with. */
constexpr int64_t kLeastScratch = int64_t{128} << 10;

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_RELAYOUT_H_
