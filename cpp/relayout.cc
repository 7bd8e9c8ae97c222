// relax_inplace.relayout: a move of bytes from a tensor to another, or within one.
// relax_inplace.relayout_scratch: the memory that the latter takes meanwhile.
//
// Both take one piece (relayout.h) as numbers:
//
//   element, read, into, digits, (extent, into, read) of each digit
//
// relayout takes the source and the target before them, as Tensors, or as DLTensor* from a kernel.
#include "relayout.h"

#include <tvm/ffi/tvm_ffi.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <ostream>
#include <utility>
#include <vector>

#include "device_wait.h"
#include "host_pages.h"
#include "owned_pages.h"
#include "processors.h"
#include "registry.h"

namespace relax_inplace {

namespace ffi = tvm::ffi;

static std::ostream& operator<<(std::ostream& out, const Piece& piece) {
  out << "elements of " << piece.element << " bytes from byte " << piece.read << " to byte "
      << piece.into << ", digits (extent, into, read)";
  for (const Digit& digit : piece.digits) {
    out << " (" << digit.extent << ", " << digit.into << ", " << digit.read << ")";
  }
  return out;
}

/*! \brief The bytes of a memory, [begin, end), that a piece reaches. */
struct Reach {
  int64_t begin;
  int64_t end;
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
  return reach;
}

/*! \brief A piece that can be carried out, if the memories are as large as what it reaches. */
struct CheckedPiece {
  Piece piece;
  int64_t bytes = 1;  // 0 if there is nothing to do
  Reach read;
  Reach into;
};

/*!
 * \brief The piece that arguments describe, from one of them on.
 * \throws ValueError Says what is wrong.
 */
static CheckedPiece CheckPiece(const char* function, ffi::PackedArgs args, int first) {
  const int given = static_cast<int>(args.size()) - first;
  TVM_FFI_CHECK(given >= 4, TypeError)
      << function << ": expected the description of a piece, 4 numbers or more, but got "
      << std::max(given, 0);
  const auto number = [&](int i) { return args[first + i].cast<int64_t>(); };
  CheckedPiece checked;
  Piece& piece = checked.piece;
  piece.element = number(0);
  piece.read = number(1);
  piece.into = number(2);
  const int64_t digits = number(3);
  TVM_FFI_CHECK(digits >= 0 && digits <= given && 3 * digits == given - 4, TypeError)
      << function << ": expected 3 numbers for each of " << digits << " digits, but got "
      << given - 4 << " numbers";
  bool is_wrong = piece.element < 0;
  bool overflows = false;
  bool is_empty = piece.element == 0;  // then steps may be anything: sizes of 0 are factors of them
  int64_t bytes = piece.element;
  for (int i = 0; i < digits; ++i) {
    const Digit digit{number(4 + 3 * i), number(5 + 3 * i), number(6 + 3 * i)};
    piece.digits.push_back(digit);
    is_empty = is_empty || digit.extent == 0;
    is_wrong = is_wrong || digit.extent < 0 || (digit.extent > 1 && digit.into <= 0);
    overflows |= __builtin_mul_overflow(bytes, std::max<int64_t>(1, digit.extent), &bytes);
  }
  TVM_FFI_CHECK(!is_wrong || is_empty, ValueError)
      << function << ": expected elements of 0 bytes or more, extents of 0 or more, and steps into "
      << "the output above 0, but got " << piece
      << "; nothing has changed. Compile the module again";
  if (is_empty) {
    checked.bytes = 0;
    return checked;
  }
  checked.read = ReachOf(piece, piece.read, &Digit::read, &overflows);
  checked.into = ReachOf(piece, piece.into, &Digit::into, &overflows);
  TVM_FFI_CHECK(!overflows, ValueError) << function << ": larger than any memory: " << piece
                                        << "; nothing has changed. Compile the module again";
  checked.bytes = bytes;
  return checked;
}

/*! \brief Whether strides are those of a contiguous array in some order of its axes. */
static bool IsDense(int64_t element, std::vector<Digit> digits, int64_t Digit::*stride) {
  std::sort(digits.begin(), digits.end(), [&](const Digit& one, const Digit& other) {
    return std::abs(one.*stride) < std::abs(other.*stride);
  });
  for (const Digit& digit : digits) {
    if (std::abs(digit.*stride) != element) return false;
    element *= digit.extent;
  }
  return true;
}

/*!
 * \brief The piece from and to byte 0 of what it reaches, normalised.
 * \throws ValueError if it is no permutation of those bytes.
 */
static Piece CheckPermutation(const char* function, const CheckedPiece& checked) {
  Piece piece = Normalised(checked.piece);
  TVM_FFI_CHECK(IsDense(piece.element, piece.digits, &Digit::read) &&
                    IsDense(piece.element, piece.digits, &Digit::into),
                ValueError)
      << function << ": expected a permutation of bytes, since it is to be in place, but got "
      << checked.piece << "; nothing has changed. Move to other memory";
  piece.read -= checked.read.begin;
  piece.into = 0;
  return piece;
}

/*! \brief The first byte of a tensor, whose `reach` is there. */
static char* CheckTensor(const char* name, const DLTensor& tensor, const Reach& reach,
                         const Piece& piece) {
  TVM_FFI_CHECK(IsHost(tensor.device), ValueError)
      << "relax_inplace.relayout: expected a " << name << " in host memory, but got one on device "
      << "type " << tensor.device.device_type << "; copy it to the host";
  TVM_FFI_CHECK(ffi::IsContiguous(tensor), ValueError)
      << "relax_inplace.relayout: expected a contiguous " << name << "; copy it before the call";
  const auto bytes = static_cast<int64_t>(ffi::GetDataSize(tensor));
  TVM_FFI_CHECK(reach.begin >= 0 && reach.end <= bytes, ValueError)
      << "relax_inplace.relayout: expected a piece within the " << bytes << " bytes of the " << name
      << ", but it reaches from byte " << reach.begin << " to " << reach.end << ": " << piece
      << "; nothing has changed. Pass tensors of the sizes that it was made for";
  return static_cast<char*>(tensor.data) + tensor.byte_offset;
}

static void MoveInPlace(char* memory, const Piece& piece, int threads) {
  if (piece.digits.empty()) return;
  const InPlaceMove move(piece, threads);
  const int64_t bytes = move.ScratchBytes();
  // All that is needed is allocated before the first byte changes.
  const ScratchPages scratch(bytes);
  TVM_FFI_CHECK(scratch.data() != nullptr, RuntimeError)
      << "relax_inplace.relayout: out of memory: " << bytes << " bytes of scratch; nothing has "
      << "changed";
  move.Run(memory, scratch.data());
}

/*!
 * \brief Carries out one piece: from one memory to another, or, where both are the same and the
 *        piece permutes what it reaches of it, in place, by bounded scratch.
 *
 * No other piece may write what this one writes, which is for the caller to prove. All is checked,
 * and allocated, before anything is written.
 *
 * \param args The source and the target; the piece, as above.
 * \throws TypeError, ValueError or RuntimeError Says what was given. Nothing has changed.
 */
static void Relayout(ffi::PackedArgs args, ffi::Any*) {
  constexpr const char* kName = "relax_inplace.relayout";
  TVM_FFI_CHECK(args.size() >= 2, TypeError)
      << kName << ": expected a source, a target and the description of a piece, but got "
      << args.size() << " arguments";
  const auto* source = args[0].cast<DLTensor*>();
  const auto* target = args[1].cast<DLTensor*>();
  const CheckedPiece checked = CheckPiece(kName, args, 2);
  const int threads = ThreadsToMove(checked.bytes);
  if (checked.bytes == 0) return;
  char* from = CheckTensor("source", *source, checked.read, checked.piece);
  char* to = CheckTensor("target", *target, checked.into, checked.piece);
  const char* read = from + checked.read.begin;
  char* written = to + checked.into.begin;
  if (read + (checked.read.end - checked.read.begin) <= written ||
      written + (checked.into.end - checked.into.begin) <= read) {
    const Piece piece = Normalised(checked.piece);
    if (piece.digits.empty() && MovePages(from + piece.read, to + piece.into, piece.element))
      return;
    OutOfPlaceMove(checked.piece).Run(from, to, threads);
    return;
  }
  TVM_FFI_CHECK(read == written, ValueError)
      << kName << ": expected memories that do not overlap, or are the same, but the target is "
      << written - read << " bytes behind the source: " << checked.piece
      << "; nothing has changed. Move to other memory";
  MoveInPlace(written, CheckPermutation(kName, checked), threads);
}

/*!
 * \brief Bytes of scratch that a piece takes in place, by the threads that it would have now.
 * \param args The piece.
 */
static void RelayoutScratch(ffi::PackedArgs args, ffi::Any* result) {
  constexpr const char* kName = "relax_inplace.relayout_scratch";
  const CheckedPiece checked = CheckPiece(kName, args, 0);
  const int threads = ThreadsToMove(checked.bytes);
  int64_t bytes = 0;
  if (checked.bytes > 0) {
    const Piece piece = CheckPermutation(kName, checked);
    if (!piece.digits.empty()) bytes = InPlaceMove(piece, threads).ScratchBytes();
  }
  *result = bytes;
}

TVM_FFI_STATIC_INIT_BLOCK() {
  RegisterPacked("relax_inplace.relayout", Relayout);
  RegisterPacked("relax_inplace.relayout_scratch", RelayoutScratch);
}

}  // namespace relax_inplace
