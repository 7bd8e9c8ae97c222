// Random moves by the runtime's mover, each compared with loops over bits. It needs nothing but the
// mover's own sources: so it runs where Python and TVM do not, such as under an emulator.
//
//   check_moves SEED COUNT
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

#include "file_range.h"
#include "relayout.h"

using relax_inplace::Digit;
using relax_inplace::Piece;

namespace {

std::mt19937_64 random_numbers;
int64_t from_files = 0;

int64_t Below(int64_t count) { return static_cast<int64_t>(random_numbers() % count); }

bool BitOf(const std::vector<char>& memory, int64_t at) { return memory[at / 8] >> at % 8 & 1; }

void SetBit(std::vector<char>* memory, int64_t at, bool bit) {
  char& byte = (*memory)[at / 8];
  byte = static_cast<char>((byte & ~(1 << at % 8)) | bit << at % 8);
}

void MoveByLoops(const Piece& piece, const std::vector<char>& source, std::vector<char>* target,
                 size_t digit, int64_t read, int64_t into) {
  if (digit < piece.digits.size()) {
    const Digit& loop = piece.digits[digit];
    for (int64_t i = 0; i < loop.extent; ++i) {
      MoveByLoops(piece, source, target, digit + 1, read + i * loop.read, into + i * loop.into);
    }
    return;
  }
  for (int64_t i = 0; i < piece.element; ++i) {
    const bool found = !piece.fills && BitOf(source, read + i);
    SetBit(target, into + i, found != (piece.pattern >> i % 64 & 1));
  }
}

int64_t BitsOf(const Piece& piece) {
  int64_t bits = piece.element;
  for (const Digit& digit : piece.digits) bits *= digit.extent;
  return bits;
}

/*! \brief A permutation of digits, some of them backwards, with or without a pattern. */
Piece AnyPermutation(int64_t most_bits) {
  constexpr int64_t kElements[] = {1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 800};
  constexpr int64_t kExtents[] = {1, 2, 3, 4, 5, 7, 8, 13, 16, 17, 32, 64, 65, 100, 128};
  Piece piece;
  piece.element = kElements[Below(std::size(kElements))];
  if (most_bits > 1 << 20 && Below(2) == 0) piece.element = 8 * (1 + Below(4000));
  std::vector<int64_t> extents;
  int64_t bits = piece.element;
  for (int64_t count = Below(6); count > 0; --count) {
    const int64_t extent = kExtents[Below(std::size(kExtents))];
    if (bits * extent > most_bits) continue;
    bits *= extent;
    extents.push_back(extent);
  }
  if (bits % 8 != 0) extents.push_back(8);
  std::vector<size_t> order(extents.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::shuffle(order.begin(), order.end(), random_numbers);
  piece.digits.resize(extents.size());
  int64_t read = piece.element;
  for (size_t i = extents.size(); i-- > 0; read *= extents[i]) {
    piece.digits[i] = {extents[i], 0, read};
    if (Below(5) > 0) continue;
    piece.read += read * (extents[i] - 1);
    piece.digits[i].read = -read;
  }
  int64_t into = piece.element;
  for (const size_t i : order) {
    piece.digits[i].into = into;
    into *= extents[i];
  }
  if (Below(2) == 0 && piece.element % 4 == 0) piece.pattern = 0x8888888888888888;
  if (Below(4) == 0 && piece.element % 64 == 0) piece.pattern = random_numbers();
  return piece;
}

std::vector<char> RandomBytes(int64_t bytes) {
  std::vector<char> found(bytes);
  for (char& byte : found) byte = static_cast<char>(random_numbers());
  return found;
}

void Fail(const char* what, const std::vector<Piece>& pieces) {
  std::printf("%s differs:\n", what);
  for (const Piece& piece : pieces) {
    std::printf("  element %lld, into %lld, read %lld, pattern %llx\n",
                static_cast<long long>(piece.element), static_cast<long long>(piece.into),
                static_cast<long long>(piece.read), static_cast<unsigned long long>(piece.pattern));
    for (const Digit& digit : piece.digits) {
      std::printf("    %lld, %lld, %lld\n", static_cast<long long>(digit.extent),
                  static_cast<long long>(digit.into), static_cast<long long>(digit.read));
    }
  }
  std::exit(1);
}

/*! \brief From a file, in which as many bytes lie before. */
void CheckFromFile(const Piece& piece, const std::vector<char>& source,
                   const std::vector<char>& expected, int threads, int64_t most_scratch) {
  const relax_inplace::Piece normalised = relax_inplace::Normalised(piece);
  for (const Digit& digit : normalised.digits) {
    if (digit.read < 0) return;
  }
  const auto move = relax_inplace::FileMove::Of(normalised, threads, most_scratch);
  if (!move) return;
  ++from_files;
  std::FILE* file = std::tmpfile();
  const std::vector<char> before(1 + Below(5000));
  std::fwrite(before.data(), 1, before.size(), file);
  std::fwrite(source.data(), 1, source.size(), file);
  std::fflush(file);
  const auto bytes = static_cast<int64_t>(source.size());
  const relax_inplace::FileRange range(fileno(file), static_cast<int64_t>(before.size()), bytes);
  if (move->ScratchBytes() > most_scratch) Fail("scratch for a file", {piece});
  std::vector<char> scratch(move->ScratchBytes() + 64);
  std::vector<char> target(source.size());
  const int error = move->Run(range, target.data(), scratch.data());
  if (!range.ProblemAfter(error).empty() || target != expected) Fail("from a file", {piece});
  if (ftruncate(fileno(file), static_cast<off_t>(before.size()) + bytes - 1) != 0) std::exit(1);
  if (range.ProblemAfter(move->Run(range, target.data(), scratch.data())).empty()) {
    Fail("what is read behind the end", {piece});
  }
  std::fclose(file);
}

/*! \brief Pieces that together permute so many bits. */
void Check(const std::vector<Piece>& pieces) {
  int64_t bits = 0;
  for (const Piece& piece : pieces) bits += BitsOf(piece);
  const std::vector<char> source = RandomBytes(bits / 8);
  std::vector<char> expected(source.size());
  for (const Piece& piece : pieces) {
    MoveByLoops(piece, source, &expected, 0, piece.read, piece.into);
  }
  const int threads = static_cast<int>(1 + Below(4));
  std::vector<char> target(source.size());
  for (const Piece& piece : pieces) {
    relax_inplace::OutOfPlaceMove(piece).Run(source.data(), target.data(), threads);
  }
  if (target != expected) Fail("out of place", pieces);
  std::vector<Piece> normalised;
  for (const Piece& piece : pieces) normalised.push_back(relax_inplace::Normalised(piece));
  for (const int64_t most_scratch : {int64_t{4} << 20, relax_inplace::kLeastScratch}) {
    const relax_inplace::InPlaceMove move(normalised, threads, most_scratch);
    if (move.ScratchBytes() > most_scratch) Fail("scratch", pieces);
    std::vector<char> scratch(move.ScratchBytes() + 64);
    char* aligned = scratch.data() + -reinterpret_cast<uintptr_t>(scratch.data()) % 64;
    target = source;
    move.Run(target.data(), aligned);
    if (target != expected) Fail(most_scratch > 1 << 20 ? "in place" : "by little scratch", pieces);
    if (pieces.size() == 1) {
      // So that there are several slabs, and runs that are longer than one.
      const int64_t little = (threads * 64 << Below(7)) + Below(64);
      CheckFromFile(pieces.front(), source, expected, threads, most_scratch);
      CheckFromFile(pieces.front(), source, expected, threads, little);
    }
  }
}

/*! \brief Nibbles, of which two threads would write two into one byte; or not. */
void CheckSlabsAreApart() {
  const auto transposition = [](int64_t rows, int64_t columns) {
    return Piece{4, {{columns, rows * 4, 4}, {rows, 4, columns * 4}}};
  };
  const auto is_moved = [](const Piece& piece) {
    const int64_t scratch = int64_t{4} << 20;
    return relax_inplace::FileMove::Of(relax_inplace::Normalised(piece), 2, scratch).has_value();
  };
  if (!is_moved(transposition(1000, 4000))) Fail("an even number of rows", {});
  if (is_moved(transposition(1001, 4000))) Fail("an odd number of rows", {});
  for (const int64_t nibbles : {int64_t{1} << 20, (int64_t{1} << 20) + 1}) {  // longer than a slab
    const Piece piece{4 * nibbles, {{2, 8 * nibbles, 4 * nibbles}, {2, 4 * nibbles, 8 * nibbles}}};
    if (is_moved(piece) != (nibbles % 2 == 0)) Fail("long runs of nibbles", {piece});
  }
  // A piece of a larger output, which begins, or goes on, within a byte.
  Piece moved = transposition(1000, 4000);
  moved.into = 4;
  if (is_moved(moved)) Fail("what begins within a byte", {moved});
  const Piece apart{4, {{4000, 4 * 1002 - 4, 4}, {1000, 4, 16000}}};
  if (is_moved(apart)) Fail("rows that begin within bytes", {apart});
  constexpr int64_t kRun = (int64_t{8} << 18) + 4;
  const Piece runs{kRun, {{2, kRun + 4, kRun}}};
  if (is_moved(runs)) Fail("runs that are read from within a byte", {runs});
}

/*! \brief A head and a body of so many bits, in rows that are taken together, n times. */
std::vector<Piece> Interleaved(int64_t n, int64_t rows, int64_t blocks, int64_t head,
                               int64_t body) {
  const int64_t block = head + body;
  const int64_t all = rows * blocks * block;
  return {
      {head, {{n, all, all}, {blocks, rows * block, block}, {rows, head, blocks * block}}, 0, 0},
      {body / 2,
       {{n, all, all},
        {blocks, rows * block, block},
        {2, rows * (body / 2), body / 2},
        {rows, body / 2, blocks * block}},
       rows * head,
       head,
       0x8888888888888888}};
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  random_numbers.seed(std::strtoull(argv[1], nullptr, 10));
  const int64_t count = std::strtoll(argv[2], nullptr, 10);
  for (int64_t i = 0; i < count; ++i) Check({AnyPermutation(int64_t{1} << (i % 8 == 0 ? 22 : 15))});
  CheckSlabsAreApart();
  Check(Interleaved(3, 8, 5, 16, 128));
  Check(Interleaved(1, 8, 1031, 16, 128));  // more than there is of the least scratch
  Check(Interleaved(1, 7, 9001, 8, 24));
  constexpr int64_t kRun = int64_t{8} << 18;  // bits; runs that are read to where they belong
  Check({Piece{kRun, {{2, 7 * kRun, kRun}, {7, kRun, 2 * kRun}}}});
  if (from_files < count / 4) return 1;
  std::printf("%lld moves\n", static_cast<long long>(count + 4));
}
