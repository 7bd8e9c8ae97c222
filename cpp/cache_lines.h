// Stores past the caches, and loads ahead of their use, where a processor has them.
#ifndef RELAX_INPLACE_CACHE_LINES_H_
#define RELAX_INPLACE_CACHE_LINES_H_

#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <emmintrin.h>
#endif

namespace relax_inplace {

constexpr int64_t kLine = 64;  // bytes of a cache line

inline bool IsOnLine(const void* address) {
  return reinterpret_cast<uintptr_t>(address) % kLine == 0;
}

inline void Prefetch(const void* address) {
#if defined(__GNUC__)
  __builtin_prefetch(address);
#else
  static_cast<void>(address);
#endif
}

/*! \brief Copies 16 bytes to an address of 16. */
inline void Stream(char* target, const char* source) {
#if defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(target),
                   _mm_loadu_si128(reinterpret_cast<const __m128i*>(source)));
#else
  std::memcpy(target, source, 16);
#endif
}

/*! \brief Makes what this thread streamed visible to others before what it stores next. */
inline void EndStream() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

}  // namespace relax_inplace

#endif  // RELAX_INPLACE_CACHE_LINES_H_
