// relax_inplace.relayout: a move of bits from a tensor to another, or within one.
// relax_inplace.relayout_scratch: the memory that the latter takes meanwhile.
//
// Both take pieces (relayout.h) as numbers: how many there are, and of each
//
//   element, read, into, pattern, whether it fills, digits, (extent, into, read) of each digit
//
// relayout takes the source and the target before them, as Tensors, or as DLTensor* from a kernel.
#include "relayout.h"

#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <mutex>
#include <ostream>
#include <string>
#include <utility>
#include <vector>

#include "device.h"
#include "pages.h"
#include "processors.h"
#include "registry.h"
#include "storage.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

/*! \brief Scratch for a move of so many bytes, of all threads together: little for little ones. */
static int64_t MostScratch(int64_t bytes) {
  constexpr int64_t kMultiple = 4 * 64;  // a quarter is set aside, and what follows is aligned
  return std::clamp(bytes / 4 / kMultiple * kMultiple, kLeastScratch, int64_t{4} << 20);
}
/*! \brief No memory has so many bits, and a few numbers below this have a sum. */
constexpr int64_t kMostBits = int64_t{1} << 60;

static std::ostream& operator<<(std::ostream& out, const Piece& piece) {
  out << "elements of " << piece.element << " bits ";
  if (!piece.fills) out << "from bit " << piece.read << " ";
  out << "to bit " << piece.into << ", digits (extent, into, read)";
  for (const Digit& digit : piece.digits) {
    out << " (" << digit.extent << ", " << digit.into << ", " << digit.read << ")";
  }
  return out;
}

/*! \brief The bits of a memory, [begin, end), that are reached; none at first. */
struct Reach {
  int64_t begin = INT64_MAX;
  int64_t end = INT64_MIN;

  bool is_empty() const { return begin > end; }
  int64_t bits() const { return is_empty() ? 0 : end - begin; }
  int64_t first_byte() const { return begin / 8; }
  int64_t end_byte() const { return (end + 7) / 8; }

  void Add(const Reach& other) {
    begin = std::min(begin, other.begin);
    end = std::max(end, other.end);
  }
};

/*! \brief What a piece reads, or writes. Sets `overflows` if that is no range of numbers. */
static Reach ReachOf(const Piece& piece, int64_t base, int64_t Digit::*stride, bool* overflows) {
  Reach reach{base, base};
  for (const Digit& digit : piece.digits) {
    int64_t last;
    *overflows |= __builtin_mul_overflow(digit.*stride, digit.extent - 1, &last);
    int64_t& side = last < 0 ? reach.begin : reach.end;
    *overflows |= __builtin_add_overflow(side, last, &side);
  }
  *overflows |= __builtin_add_overflow(reach.end, piece.element, &reach.end);
  *overflows |= reach.begin < -kMostBits || reach.end > kMostBits;
  return reach;
}

/*! \brief Pieces that can be carried out, if the memories are as large as what they reach. */
struct CheckedPieces {
  std::vector<Piece> pieces;  // those that move or fill anything
  int64_t bits = 0;
  Reach read;
  Reach into;
};

/*! \brief Reads pieces from arguments. */
class PieceReader {
 public:
  PieceReader(const char* function, ffi::PackedArgs args) : function_(function), args_(args) {}

  /*! \throws TypeError or ValueError Says what is wrong. */
  CheckedPieces Read() {
    CheckedPieces checked;
    const int64_t count = Number("the number of pieces");
    for (int64_t i = 0; i < count; ++i) ReadPiece(&checked);
    TVM_FFI_CHECK(count >= 0 && next_ == static_cast<int>(args_.size()), TypeError)
        << function_ << ": expected the description of " << count << " pieces, but got "
        << static_cast<int>(args_.size()) - next_ << " numbers more than that";
    return checked;
  }

 private:
  int64_t Number(const char* what) {
    TVM_FFI_CHECK(next_ < static_cast<int>(args_.size()), TypeError)
        << function_ << ": expected the description of pieces, but there is no number for " << what;
    return args_[next_++].cast<int64_t>();
  }

  void ReadPiece(CheckedPieces* checked) {
    Piece piece;
    piece.element = Number("the bits of an element");
    piece.read = Number("the first bit that is read");
    piece.into = Number("the first bit that is written");
    piece.pattern = static_cast<uint64_t>(Number("the pattern"));
    piece.fills = Number("whether it fills") != 0;
    const int64_t digits = Number("how many digits there are");
    TVM_FFI_CHECK(digits >= 0, TypeError)
        << function_ << ": expected 0 digits or more, but got " << digits;
    bool is_wrong = piece.element < 0;
    bool overflows = false;
    bool is_empty = piece.element == 0;  // then steps may be anything: sizes of 0 are in them
    int64_t bits = piece.element;
    for (int64_t i = 0; i < digits; ++i) {
      Digit digit;
      digit.extent = Number("the extent of a digit");
      digit.into = Number("the step of a digit in the output");
      digit.read = Number("the step of a digit in the input");
      piece.digits.push_back(digit);
      is_empty = is_empty || digit.extent == 0;
      is_wrong = is_wrong || digit.extent < 0 || (digit.extent > 1 && digit.into <= 0);
      overflows |= __builtin_mul_overflow(bits, std::max<int64_t>(1, digit.extent), &bits);
    }
    TVM_FFI_CHECK(!is_wrong || is_empty, ValueError)
        << function_ << ": expected elements of 0 bits or more, extents of 0 or more, and steps "
        << "into the output above 0, but got " << piece
        << "; nothing has changed. Compile the module again";
    if (is_empty) return;
    TVM_FFI_CHECK(piece.element % PeriodOf(piece.pattern) == 0, ValueError)
        << function_ << ": expected elements of whole periods of the pattern, which are "
        << PeriodOf(piece.pattern) << " bits, but got " << piece
        << "; nothing has changed. Compile the module again";
    checked->into.Add(ReachOf(piece, piece.into, &Digit::into, &overflows));
    if (!piece.fills) checked->read.Add(ReachOf(piece, piece.read, &Digit::read, &overflows));
    overflows |= __builtin_add_overflow(bits, checked->bits, &checked->bits);
    TVM_FFI_CHECK(!overflows && checked->bits <= kMostBits, ValueError)
        << function_ << ": larger than any memory: " << piece
        << "; nothing has changed. Compile the module again";
    checked->pieces.push_back(std::move(piece));
  }

  const char* function_;
  ffi::PackedArgs args_;
  int next_ = 0;
};

/*! \brief Whether each digit's steps go beyond all that is reached by those of shorter steps. */
static bool IsNested(const Piece& piece, int64_t Digit::*stride) {
  std::vector<Digit> digits = piece.digits;
  std::sort(digits.begin(), digits.end(), [&](const Digit& one, const Digit& other) {
    return std::abs(one.*stride) < std::abs(other.*stride);
  });
  int64_t reach = piece.element;
  for (const Digit& digit : digits) {
    if (std::abs(digit.*stride) < reach) return false;
    reach += std::abs(digit.*stride) * (digit.extent - 1);
  }
  return true;
}

/*!
 * \brief The pieces from and to bit 0 of what they reach, normalised.
 * \throws ValueError if they are no permutation of those bytes.
 */
static std::vector<Piece> CheckPermutation(const char* function, const CheckedPieces& checked) {
  std::vector<Piece> pieces;
  const bool is_whole = checked.bits == checked.into.bits() &&
                        checked.bits == checked.read.bits() && checked.bits % 8 == 0 &&
                        checked.into.begin % 8 == 0 && checked.read.begin % 8 == 0;
  for (const Piece& piece : checked.pieces) {
    pieces.push_back(Normalised(piece));
    TVM_FFI_CHECK(is_whole && !piece.fills && IsNested(pieces.back(), &Digit::read) &&
                      IsNested(pieces.back(), &Digit::into),
                  ValueError)
        << function << ": expected a permutation of bytes, or of their bits, since it is to be in "
        << "place, but got " << checked.pieces.size() << " pieces, one of them " << piece
        << "; nothing has changed. Move to other memory";
    pieces.back().read -= checked.read.begin;
    pieces.back().into -= checked.into.begin;
  }
  return pieces;
}

/*! \brief The first byte of a tensor, whose `reach` is there. */
static char* CheckTensor(const char* name, const DLTensor& tensor, const Reach& reach) {
  TVM_FFI_CHECK(IsHost(tensor.device), ValueError)
      << "relax_inplace.relayout: expected a " << name << " in host memory, but got one on device "
      << "type " << tensor.device.device_type << "; copy it to the host";
  const int64_t bytes = BytesOf(tensor).value_or(-1);
  TVM_FFI_CHECK(bytes >= 0 && ffi::IsContiguous(tensor) && (bytes == 0 || tensor.data != nullptr),
                ValueError)
      << "relax_inplace.relayout: expected a contiguous " << name << "; copy it before the call";
  TVM_FFI_CHECK(reach.is_empty() || (reach.begin >= 0 && reach.end_byte() <= bytes), ValueError)
      << "relax_inplace.relayout: expected pieces within the " << 8 * bytes << " bits of the "
      << name << ", but they reach from bit " << reach.begin << " to " << reach.end
      << "; nothing has changed. Pass tensors of the sizes that they were made for";
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

static void MoveInPlace(char* memory, const std::vector<Piece>& pieces, int threads,
                        int64_t most_scratch) {
  // All that is needed is allocated before the first byte changes.
  const InPlaceMove move(pieces, threads, most_scratch);
  const ScratchPages scratch(move.ScratchBytes());
  if (scratch.data() != nullptr) {
    move.Run(memory, scratch.data());
    return;
  }
  // The weight is there, and what it is to become needs no memory: slower, but it is not lost.
  alignas(64) static char reserve[kLeastScratch];
  static std::mutex mutex;
  const std::lock_guard<std::mutex> lock(mutex);
  InPlaceMove(pieces, threads, kLeastScratch).Run(memory, reserve);
}

/*! \brief Moves what is in a file still; or reads all of it to where it is moved from. */
static bool MovesFromFile(const Unread& unread, const CheckedPieces& checked, char* from, char* to,
                          int threads) {
  const FileRange& file = *unread.file;
  const Piece piece = Normalised(checked.pieces.front());
  const bool reads_all = checked.pieces.size() == 1 && piece.read == 0 &&
                         checked.read.end == 8 * file.bytes() &&
                         checked.bits == checked.read.bits() && IsNested(piece, &Digit::read) &&
                         IsNested(piece, &Digit::into);
  if (reads_all) {
    const auto move = FileMove::Of(piece, threads, MostScratch(file.bytes()));
    const ScratchPages scratch(move ? move->ScratchBytes() : 0);
    if (move && scratch.data() != nullptr) {
      unread.RequireRead(move->Run(file, to, scratch.data()));
      return true;
    }
  }
  unread.RequireRead(file.ReadAll(from, threads));
  return false;
}

/*! \brief Moves a run of bytes by its pages, if both memories allow it (pages.h). */
static bool MovesPages(const Piece& piece, char* from, char* to) {
  const bool is_run = piece.digits.empty() && !piece.fills && piece.pattern == 0;
  return is_run && piece.read % 8 == 0 && piece.into % 8 == 0 && piece.element % 8 == 0 &&
         MovePages(from + piece.read / 8, to + piece.into / 8, piece.element / 8);
}

/*!
 * \brief Carries out pieces: from one memory to another, or, where both are the same and the
 *        pieces permute what they reach of it, in place, by bounded scratch.
 *
 * No two pieces may write the same, or, in place, read the same, which is for the caller to prove.
 * All is checked, and allocated, before anything is written.
 *
 * \param numbers The pieces, as above.
 * \param source, target The memories.
 * \throws TypeError or ValueError Says what was given. Nothing has changed.
 */
static ffi::Any Relayout(ffi::PackedArgs numbers, DLTensor* source, DLTensor* target) {
  constexpr const char* kName = "relax_inplace.relayout";
  const CheckedPieces checked = PieceReader(kName, numbers).Read();
  if (checked.pieces.empty()) return nullptr;
  const int threads = ThreadsToMove(checked.bits / 8);
  char* from = CheckTensor("source", *source, checked.read);
  char* to = CheckTensor("target", *target, checked.into);
  Unread* const known = UnreadAt(from);
  const Unread unread = known == nullptr ? Unread{} : std::move(*known);
  if (unread.file && MovesFromFile(unread, checked, from, to, threads)) return nullptr;
  if (checked.read.is_empty() || from + checked.read.end_byte() <= to + checked.into.first_byte() ||
      to + checked.into.end_byte() <= from + checked.read.first_byte()) {
    std::vector<OutOfPlaceMove> moves;
    for (const Piece& piece : checked.pieces) moves.emplace_back(piece);
    for (size_t i = 0; i < moves.size(); ++i) {
      if (!MovesPages(Normalised(checked.pieces[i]), from, to)) moves[i].Run(from, to, threads);
    }
    return nullptr;
  }
  const char* read = from + checked.read.first_byte();
  char* written = to + checked.into.first_byte();
  TVM_FFI_CHECK(read == written, ValueError)
      << kName << ": expected memories that do not overlap, or are the same, but the target is "
      << written - read << " bytes behind the source: " << checked.pieces.front()
      << "; nothing has changed. Move to other memory";
  MoveInPlace(written, CheckPermutation(kName, checked), threads, MostScratch(checked.bits / 8));
  return nullptr;
}

/*!
 * \brief Bytes of scratch that pieces take in place, by the threads that they would have now.
 * \param numbers The pieces.
 */
static ffi::Any RelayoutScratch(ffi::PackedArgs numbers) {
  constexpr const char* kName = "relax_inplace.relayout_scratch";
  const CheckedPieces checked = PieceReader(kName, numbers).Read();
  int64_t bytes = 0;
  if (!checked.pieces.empty()) {
    const std::vector<Piece> pieces = CheckPermutation(kName, checked);
    const int64_t moved = checked.bits / 8;
    bytes = InPlaceMove(pieces, ThreadsToMove(moved), MostScratch(moved)).ScratchBytes();
  }
  return bytes;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  Register("relax_inplace.relayout", Relayout);
  Register("relax_inplace.relayout_scratch", RelayoutScratch);
}

}  // namespace relax_inplace
