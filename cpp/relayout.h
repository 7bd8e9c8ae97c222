// A move of whole bytes in host memory that is described by numbers, and how it is carried out.
//
// A piece of a move is a loop nest: one digit is one loop, and the innermost statement copies an
// element. With i_d in [0, extent_d) for each digit d, the element at byte
//
//   into + sum(d.into * i_d)   of the output is the one at byte   read + sum(d.read * i_d)
//
// of the input. A digit that is not read (0) repeats what is; one that is read backwards (below 0)
// flips an axis.
#ifndef RELAX_INPLACE_RELAYOUT_H_
#define RELAX_INPLACE_RELAYOUT_H_

#include <cstdint>
#include <optional>
#include <vector>

namespace relax_inplace {

struct Digit {
  int64_t extent;
  int64_t into;
  int64_t read;
};

struct Piece {
  int64_t element;  // bytes
  std::vector<Digit> digits;
  int64_t into = 0;
  int64_t read = 0;
};

/*!
 * \brief The same move with the largest element and the fewest digits, in the order of the output,
 *        the outermost first.
 * \param piece Extents are above 0, and `into` of a digit of more than 1.
 */
Piece Normalised(Piece piece);

/*! \brief A piece cut into parts, each of which is moved to other memory at once. */
class OutOfPlaceMove {
 public:
  explicit OutOfPlaceMove(const Piece& piece);

  int64_t bytes() const { return bytes_; }

  /*! \brief Moves the piece from one memory to another that does not overlap. */
  void Run(const char* source, char* target, int threads) const;

  /*! \brief The same on this thread, for a target that is read again soon. */
  void RunInCache(const char* source, char* target) const noexcept;

 private:
  void MoveParts(const char* source, char* target, int64_t begin, int64_t end, bool streams) const;
  void MovePart(const char* source, char* target, const int64_t* index, bool streams) const;

  int64_t element_;
  int64_t into_;
  int64_t read_;
  int64_t bytes_;
  Digit rows_;               // of the output: the digit with the shortest step in the input
  Digit columns_;            // the one with the shortest step in the output
  std::vector<Digit> grid_;  // counts parts; the last three: of rows, of columns, of an element
  int64_t part_rows_;
  int64_t part_columns_;
  int64_t part_bytes_;
  int64_t parts_;
};

/*! \brief A permutation of units of equal size in one memory, by following its cycles. */
class UnitPermutation {
 public:
  /*! \param piece Of a permutation, from and to byte 0. */
  explicit UnitPermutation(const Piece& piece);

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
  void MoveSegment(char* memory, const Batch& batch, const Segment& segment, const char* saves,
                   int64_t bytes) const;
  void MoveChunk(char* memory, char* scratch, int64_t bytes, int threads) const noexcept;

  int64_t unit_;             // bytes
  std::vector<Step> steps_;  // the innermost first
  int64_t read_;
  int64_t units_;
};

/*! \brief A permutation of the bytes of each block of a memory, through scratch. */
class LocalPass {
 public:
  /*! \param piece Of a permutation, from and to byte 0, of digits in the order of the output. */
  LocalPass(const Piece& piece, int64_t bytes, int threads, int64_t most_scratch);

  int64_t ScratchBytes() const { return threads_ * scratch_; }

  void Run(char* memory, char* scratch) const noexcept;

 private:
  int64_t block_;
  int64_t blocks_;
  int64_t row_;  // bytes that lie together in scratch
  int64_t padded_row_;
  int64_t scratch_;  // bytes of a block there
  int threads_;
  std::optional<OutOfPlaceMove> move_;  // from scratch to a block
};

/*! \brief A permutation of the bytes of one memory, as up to three passes over it. */
class Passes {
 public:
  /*! \param piece Normalised, of a permutation, from and to byte 0. */
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
};

/*! \brief A permutation of the bytes of one memory, by at most 4 MB of scratch. */
class InPlaceMove {
 public:
  /*! \param piece Normalised, of a permutation, from and to byte 0. */
  InPlaceMove(const Piece& piece, int threads);

  int64_t ScratchBytes() const;

  /*! \param scratch At an address of 64 bytes. */
  void Run(char* memory, char* scratch) const noexcept;

 private:
  /*! \brief What is left of a transposition without the rows or columns that are set aside. */
  struct Rest {
    int64_t batches;
    int64_t element;
    int64_t rows;     // of the input, all of them
    int64_t columns;  // all of them
    int64_t rest;     // how many are set aside
    bool is_of_rows;
    Piece main;  // without them

    int64_t bytes() const { return element * rest * (is_of_rows ? columns : rows); }
  };

  static std::optional<Rest> RestOf(const Piece& piece, int64_t multiple, bool is_of_rows);
  void RunBesideRest(char* memory, char* scratch) const noexcept;

  std::optional<Rest> rest_;
  std::optional<OutOfPlaceMove> rest_move_;
  std::optional<Passes> passes_;
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_RELAYOUT_H_
