// A tile of a move of bits: what a processor has in its first cache at once.
//
// The place of a bit in a tile is a number; each of its binary digits counts something: the columns
// of the input, or its rows. To move bits is to exchange digits of their places. A tile is loaded
// in runs that lie together in the input, and stored in runs of the output. Between these, a step
// exchanges a digit of the place within a register with one of the number of the register: with
// masks and shifts within 64 bits, with shuffles beyond that. So it is one way for bits, nibbles,
// bytes and more, in any order, and what there is to know of a processor is how to shuffle.
#ifndef RELAX_INPLACE_EXCHANGED_TILE_H_
#define RELAX_INPLACE_EXCHANGED_TILE_H_

#include <cstdint>
#include <vector>

namespace relax_inplace {

/*! \brief Bytes of the widest registers that this processor has, of those that there is code for.
 */
int WidestRegister();

/*! \brief A digit of the places in a tile, of two values: bits from one to the other. */
struct TileBit {
  int64_t into;
  int64_t read;
};

/*! \brief How a move uses the caches of a processor. */
struct CacheUse {
  bool streams = false;  // it stores past them: the target is large, and not read again soon
  bool is_near = false;  // the source is in one
};

/*! \brief How to move a tile. */
class ExchangedTile {
 public:
  /*! \brief So many binary digits there may be. */
  static constexpr int kMostBits = 18;

  /*! \brief How many of the digits are of bits that lie together, from the lowest on. */
  static int RunOf(const std::vector<TileBit>& bits, int64_t TileBit::*step);

  /*!
   * \brief Whether tiles of these digits are possible: runs of whole bytes, on both sides.
   */
  static bool IsPossible(const std::vector<TileBit>& bits);

  /*!
   * \param bits At most kMostBits, and possible.
   * \param pattern Xor with the output; its period is that of bits that lie together on both sides.
   */
  ExchangedTile(const std::vector<TileBit>& bits, uint64_t pattern);

  /*!
   * \brief Moves a tile whose first bits are in these bytes: `first` from where digits are 0.
   * \param later The source of a tile that is moved later.
   * \param use If it streams, whole lines are stored: runs at addresses of 64 bytes.
   */
  void Move(const char* source, const char* later, char* target, CacheUse use) const;

  /*! \brief A run: its first byte in the tile, and in the memory. */
  struct Run {
    int32_t place;
    int64_t offset;
  };
  /*!
   * \brief What is done to each two registers whose numbers differ in one binary digit.
   *
   * A kind below kWhole is an exponent: that digit is exchanged with the one of places in a
   * register that has this exponent, in bits. Interleaving two registers, from kInterleaved + k on
   * in units of 2^k bytes, exchanges several, once it is done for each: each time the digit of the
   * number becomes that of units, the others move up, and the one of halves of 16 bytes is the
   * number's.
   */
  struct Exchange {
    int64_t apart;  // from one register to the other
    int kind;
  };
  static constexpr int kWhole = 9;  // the registers themselves are exchanged
  static constexpr int kNothing = 10;
  static constexpr int kInterleaved = 11;
  static constexpr int kKinds = 14;

  /*! \brief Whether there is code for two exchanges at once: for those that are frequent. */
  static constexpr bool IsStep(int one, int two) {
    if (two == kNothing) return true;
    if (one >= kInterleaved) return two == one || two == 7 || two == 8;
    return one < two && two < kWhole;
  }

  /*! \brief Two exchanges, the one and then the other. */
  struct Step {
    int one;
    int two;
    int64_t apart;
    int64_t apart_then;
  };

  std::vector<Run> loads;
  std::vector<Run> stores;
  std::vector<Step> steps;         // one or more
  std::vector<int64_t> in_tile;    // the first byte of each register
  std::vector<int64_t> in_source;  // the same in the source; none if runs do not fill registers
  std::vector<int64_t> in_target;  // and in the target
  int load_bytes;
  int store_bytes;
  int64_t registers;
  int64_t first;    // bits from where all digits are 0 to the first that is read; 0 or below
  bool is_partial;  // not all places are loaded
  uint64_t pattern;

 private:
  static void Interleave(std::vector<Exchange>* exchanges);
  void Pair(const std::vector<Exchange>& exchanges);
};

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_EXCHANGED_TILE_H_
