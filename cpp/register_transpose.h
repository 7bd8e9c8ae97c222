// Transposition of squares of small units in vector registers.
//
// Interleaving the units of row i with those of row i + n/2, for all i < n/2, is a perfect shuffle
// of the places of all units of a square; log2(n) of them are its transposition. A register holds
// 16 bytes of a row, or several of them, each of another square.
#ifndef RELAX_INPLACE_REGISTER_TRANSPOSE_H_
#define RELAX_INPLACE_REGISTER_TRANSPOSE_H_

#include <algorithm>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace relax_inplace {

inline void Prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  static_cast<void>(address);
#endif
}

// Of each instruction set: a Register; Load, from `apart` to the next square; Store; Stream, past
// the caches; Low, the units of the lower halves of 16 bytes of two registers in turn; High, the
// upper.
namespace base {
#define RELAX_INPLACE_TARGET

#if defined(__x86_64__)

using Register = __m128i;

inline Register Load(const char* from) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
}
inline void Store(char* to, Register value) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(to), value);
}
inline void Stream(char* to, Register value) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), value);
}
/*! \brief Makes what this thread streamed visible to others before what it stores next. */
inline void EndStream() { _mm_sfence(); }

template <int kUnit>
inline Register Low(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm_unpacklo_epi8(a, b);
  if constexpr (kUnit == 2) return _mm_unpacklo_epi16(a, b);
  if constexpr (kUnit == 4) return _mm_unpacklo_epi32(a, b);
  if constexpr (kUnit == 8) return _mm_unpacklo_epi64(a, b);
}
template <int kUnit>
inline Register High(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm_unpackhi_epi8(a, b);
  if constexpr (kUnit == 2) return _mm_unpackhi_epi16(a, b);
  if constexpr (kUnit == 4) return _mm_unpackhi_epi32(a, b);
  if constexpr (kUnit == 8) return _mm_unpackhi_epi64(a, b);
}

#elif defined(__aarch64__)

using Register = uint8x16_t;

inline Register Load(const char* from) { return vld1q_u8(reinterpret_cast<const uint8_t*>(from)); }
inline void Store(char* to, Register value) { vst1q_u8(reinterpret_cast<uint8_t*>(to), value); }
inline void Stream(char* to, Register value) { Store(to, value); }
inline void EndStream() {}

template <int kUnit>
inline Register Low(Register a, Register b) {
  if constexpr (kUnit == 1) return vzip1q_u8(a, b);
  if constexpr (kUnit == 2) {
    return vreinterpretq_u8_u16(vzip1q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
  }
  if constexpr (kUnit == 4) {
    return vreinterpretq_u8_u32(vzip1q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
  }
  if constexpr (kUnit == 8) {
    return vreinterpretq_u8_u64(vzip1q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
  }
}
template <int kUnit>
inline Register High(Register a, Register b) {
  if constexpr (kUnit == 1) return vzip2q_u8(a, b);
  if constexpr (kUnit == 2) {
    return vreinterpretq_u8_u16(vzip2q_u16(vreinterpretq_u16_u8(a), vreinterpretq_u16_u8(b)));
  }
  if constexpr (kUnit == 4) {
    return vreinterpretq_u8_u32(vzip2q_u32(vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b)));
  }
  if constexpr (kUnit == 8) {
    return vreinterpretq_u8_u64(vzip2q_u64(vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b)));
  }
}

#else  // bytes, for any compiler

struct Register {
  char bytes[16];
};

inline Register Load(const char* from) {
  Register value;
  std::memcpy(value.bytes, from, 16);
  return value;
}
inline void Store(char* to, const Register& value) { std::memcpy(to, value.bytes, 16); }
inline void Stream(char* to, const Register& value) { Store(to, value); }
inline void EndStream() {}

template <int kUnit>
inline Register Low(const Register& a, const Register& b, int from = 0) {
  Register both;
  for (int i = 0; i < 8; i += kUnit) {
    std::memcpy(both.bytes + 2 * i, a.bytes + from + i, kUnit);
    std::memcpy(both.bytes + 2 * i + kUnit, b.bytes + from + i, kUnit);
  }
  return both;
}
template <int kUnit>
inline Register High(const Register& a, const Register& b) {
  return Low<kUnit>(a, b, 8);
}

#endif

inline Register Gather(const char* from, int64_t) { return Load(from); }

#include "transpose_lines.h"
#undef RELAX_INPLACE_TARGET
}  // namespace base

// Chosen when the library runs: what flags it was compiled with does not matter.
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx2 {
#define RELAX_INPLACE_TARGET __attribute__((target("avx2")))

using Register = __m256i;

RELAX_INPLACE_TARGET inline Register Load(const char* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}
RELAX_INPLACE_TARGET inline Register Gather(const char* from, int64_t apart) {
  return _mm256_inserti128_si256(_mm256_castsi128_si256(base::Load(from)), base::Load(from + apart),
                                 1);
}
RELAX_INPLACE_TARGET inline void Store(char* to, Register value) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), value);
}
RELAX_INPLACE_TARGET inline void Stream(char* to, Register value) {
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), value);
}

template <int kUnit>
RELAX_INPLACE_TARGET inline Register Low(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm256_unpacklo_epi8(a, b);
  if constexpr (kUnit == 2) return _mm256_unpacklo_epi16(a, b);
  if constexpr (kUnit == 4) return _mm256_unpacklo_epi32(a, b);
  if constexpr (kUnit == 8) return _mm256_unpacklo_epi64(a, b);
}
template <int kUnit>
RELAX_INPLACE_TARGET inline Register High(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm256_unpackhi_epi8(a, b);
  if constexpr (kUnit == 2) return _mm256_unpackhi_epi16(a, b);
  if constexpr (kUnit == 4) return _mm256_unpackhi_epi32(a, b);
  if constexpr (kUnit == 8) return _mm256_unpackhi_epi64(a, b);
}

#include "transpose_lines.h"
#undef RELAX_INPLACE_TARGET
}  // namespace avx2

namespace avx512 {
#define RELAX_INPLACE_TARGET __attribute__((target("avx512f,avx512bw")))

using Register = __m512i;

RELAX_INPLACE_TARGET inline Register Load(const char* from) { return _mm512_loadu_si512(from); }
RELAX_INPLACE_TARGET inline Register Gather(const char* from, int64_t apart) {
  Register all = _mm512_castsi128_si512(base::Load(from));
  all = _mm512_inserti32x4(all, base::Load(from + apart), 1);
  all = _mm512_inserti32x4(all, base::Load(from + 2 * apart), 2);
  return _mm512_inserti32x4(all, base::Load(from + 3 * apart), 3);
}
RELAX_INPLACE_TARGET inline void Store(char* to, Register value) { _mm512_storeu_si512(to, value); }
RELAX_INPLACE_TARGET inline void Stream(char* to, Register value) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), value);
}

template <int kUnit>
RELAX_INPLACE_TARGET inline Register Low(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm512_unpacklo_epi8(a, b);
  if constexpr (kUnit == 2) return _mm512_unpacklo_epi16(a, b);
  if constexpr (kUnit == 4) return _mm512_maskz_unpacklo_epi32(-1, a, b);
  if constexpr (kUnit == 8) return _mm512_maskz_unpacklo_epi64(-1, a, b);
}
template <int kUnit>
RELAX_INPLACE_TARGET inline Register High(Register a, Register b) {
  if constexpr (kUnit == 1) return _mm512_unpackhi_epi8(a, b);
  if constexpr (kUnit == 2) return _mm512_unpackhi_epi16(a, b);
  if constexpr (kUnit == 4) return _mm512_maskz_unpackhi_epi32(-1, a, b);
  if constexpr (kUnit == 8) return _mm512_maskz_unpackhi_epi64(-1, a, b);
}

#include "transpose_lines.h"
#undef RELAX_INPLACE_TARGET
}  // namespace avx512

/*! \brief Bytes of the widest registers that this processor has, of these. */
inline int WidestRegister() {
  static const int widest = __builtin_cpu_supports("avx512bw") ? 64
                            : __builtin_cpu_supports("avx2")   ? 32
                                                               : 16;
  return widest;
}

#else

namespace avx2 = base;
namespace avx512 = base;
inline int WidestRegister() { return 16; }

#endif

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_REGISTER_TRANSPOSE_H_
