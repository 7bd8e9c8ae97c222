// Runs of bits that begin anywhere, in host memory.
#ifndef RELAX_INPLACE_BIT_RUNS_H_
#define RELAX_INPLACE_BIT_RUNS_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace relax_inplace {

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#error "bits of a word are counted from its first byte on"
#endif

/*! \brief At most 8 bits from some bit on; it reads the bytes that have them. */
inline uint32_t BitsAt(const char* memory, int64_t at, int count) {
  const auto* byte = reinterpret_cast<const unsigned char*>(memory) + at / 8;
  const int shift = static_cast<int>(at % 8);
  uint32_t bits = byte[0] >> shift;
  if (shift + count > 8) bits |= static_cast<uint32_t>(byte[1]) << (8 - shift);
  return bits & ((1U << count) - 1);
}

/*! \brief Writes bits of one byte; none beside them changes. */
inline void PutBits(char* memory, int64_t at, int count, uint32_t bits) {
  char* byte = memory + at / 8;
  const int shift = static_cast<int>(at % 8);
  if (count == 8) {
    *byte = static_cast<char>(bits);
    return;
  }
  const uint32_t mask = ((1U << count) - 1) << shift;
  *byte = static_cast<char>((static_cast<unsigned char>(*byte) & ~mask) | (bits << shift));
}

/*!
 * \brief Moves a run of bits.
 * \param source Null for zeros; it may be where the target is.
 * \param pattern Of the first bit the lowest.
 */
inline void MoveBits(const char* source, int64_t read, char* target, int64_t into, int64_t count,
                     uint64_t pattern) {
  const auto turned = [&](int64_t bit) {
    const int64_t shift = bit % 64;
    return shift == 0 ? pattern : pattern >> shift | pattern << (64 - shift);
  };
  int64_t bit = 0;
  const auto move = [&](int bits) {
    const uint32_t found = source == nullptr ? 0 : BitsAt(source, read + bit, bits);
    const uint32_t mask = (1U << bits) - 1;
    PutBits(target, into + bit, bits, found ^ (static_cast<uint32_t>(turned(bit)) & mask));
    bit += bits;
  };
  if (into % 8 != 0) move(static_cast<int>(std::min<int64_t>(count, 8 - into % 8)));
  if (source == nullptr || (read + bit) % 8 == 0) {
    const uint64_t word = turned(bit);
    for (; bit + 64 <= count; bit += 64) {
      uint64_t found = 0;
      if (source != nullptr) std::memcpy(&found, source + (read + bit) / 8, 8);
      found ^= word;
      std::memcpy(target + (into + bit) / 8, &found, 8);
    }
  }
  while (bit < count) move(static_cast<int>(std::min<int64_t>(count - bit, 8)));
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_BIT_RUNS_H_
