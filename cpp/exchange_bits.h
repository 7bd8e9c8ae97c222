// The exchange of digits in registers. No guard: exchanged_tile.cc includes it once for each
// instruction set, in a namespace, with RELAX_INPLACE_TARGET, the attribute of every function, and
// RELAX_INPLACE_WORDS, how many words of 64 bits a register has.

#if defined(__GNUC__)
typedef uint64_t Register __attribute__((vector_size(8 * RELAX_INPLACE_WORDS), may_alias));
#else
typedef uint64_t Register;
#endif
constexpr int kExponents = RELAX_INPLACE_WORDS == 8   ? 9
                           : RELAX_INPLACE_WORDS == 4 ? 8
                           : RELAX_INPLACE_WORDS == 2 ? 7
                                                      : 6;

#if defined(__clang__)
#define RELAX_INPLACE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define RELAX_INPLACE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Order{__VA_ARGS__})
#endif

/*! \brief Exchanges the number of two registers, and a digit of places in them. */
template <int kExponent>
RELAX_INPLACE_TARGET inline void Exchange(Register* one, Register* other) {
  const Register a = *one;
  const Register b = *other;
  if constexpr (kExponent == ExchangedTile::kWhole) {
    *one = b;
    *other = a;
  } else if constexpr (kExponent < 6) {
    constexpr uint64_t kMasks[] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f,
                                   0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
    const Register low = Register{} + kMasks[kExponent];
    *one = (a & low) | ((b << (1 << kExponent)) & ~low);
    *other = ((a >> (1 << kExponent)) & low) | (b & ~low);
  } else {
#if RELAX_INPLACE_WORDS > 1
    typedef uint64_t Order __attribute__((vector_size(8 * RELAX_INPLACE_WORDS)));
#if RELAX_INPLACE_WORDS == 2
    *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 2);
    *other = RELAX_INPLACE_SHUFFLE(a, b, 1, 3);
#elif RELAX_INPLACE_WORDS == 4
    if constexpr (kExponent == 6) {
      *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 4, 2, 6);
      *other = RELAX_INPLACE_SHUFFLE(a, b, 1, 5, 3, 7);
    } else {
      *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 1, 4, 5);
      *other = RELAX_INPLACE_SHUFFLE(a, b, 2, 3, 6, 7);
    }
#else
    if constexpr (kExponent == 6) {
      *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 8, 2, 10, 4, 12, 6, 14);
      *other = RELAX_INPLACE_SHUFFLE(a, b, 1, 9, 3, 11, 5, 13, 7, 15);
    } else if constexpr (kExponent == 7) {
      *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 1, 8, 9, 4, 5, 12, 13);
      *other = RELAX_INPLACE_SHUFFLE(a, b, 2, 3, 10, 11, 6, 7, 14, 15);
    } else {
      *one = RELAX_INPLACE_SHUFFLE(a, b, 0, 1, 2, 3, 8, 9, 10, 11);
      *other = RELAX_INPLACE_SHUFFLE(a, b, 4, 5, 6, 7, 12, 13, 14, 15);
    }
#endif
#endif
  }
}
#undef RELAX_INPLACE_SHUFFLE

/*! \brief One exchange in all registers of a tile. */
template <int kExponent>
RELAX_INPLACE_TARGET void ExchangeAll(Register* tile, int64_t registers, int64_t apart) {
  for (int64_t first = 0; first < registers; first += 2 * apart) {
    for (int64_t i = first; i < first + apart; ++i) Exchange<kExponent>(tile + i, tile + i + apart);
  }
}

/*! \brief Two exchanges at once, of 4 registers each time: half of the loads and stores. */
template <int kOne, int kTwo>
RELAX_INPLACE_TARGET void ExchangeAll(Register* tile, int64_t registers, int64_t apart,
                                      int64_t apart_then) {
  const int64_t inner = std::min(apart, apart_then);
  const int64_t outer = std::max(apart, apart_then);
  for (int64_t first = 0; first < registers; first += 2 * outer) {
    for (int64_t second = first; second < first + outer; second += 2 * inner) {
      for (int64_t i = second; i < second + inner; ++i) {
        Register a = tile[i];
        Register b = tile[i + apart];
        Register c = tile[i + apart_then];
        Register d = tile[i + apart + apart_then];
        Exchange<kOne>(&a, &b);
        Exchange<kOne>(&c, &d);
        Exchange<kTwo>(&a, &c);
        Exchange<kTwo>(&b, &d);
        tile[i] = a;
        tile[i + apart] = b;
        tile[i + apart_then] = c;
        tile[i + apart + apart_then] = d;
      }
    }
  }
}

/*! \brief The function of an exponent, or of two, that are known when it runs. */
template <int kExponent = 0>
RELAX_INPLACE_TARGET void ExchangeAt(int exponent, Register* tile, int64_t registers,
                                     int64_t apart) {
  if (exponent == kExponent) return ExchangeAll<kExponent>(tile, registers, apart);
  if constexpr (kExponent + 1 < kExponents) {
    ExchangeAt<kExponent + 1>(exponent, tile, registers, apart);
  }
}
template <int kOne, int kTwo = 0>
RELAX_INPLACE_TARGET void ExchangeWith(int two, Register* tile, int64_t registers, int64_t apart,
                                       int64_t apart_then) {
  if (two == kTwo) return ExchangeAll<kOne, kTwo>(tile, registers, apart, apart_then);
  if constexpr (kTwo + 1 < kExponents) {
    ExchangeWith<kOne, kTwo + 1>(two, tile, registers, apart, apart_then);
  }
}
template <int kOne = 0>
RELAX_INPLACE_TARGET void ExchangeTwo(int one, int two, Register* tile, int64_t registers,
                                      int64_t apart, int64_t apart_then) {
  if (one == kOne) return ExchangeWith<kOne>(two, tile, registers, apart, apart_then);
  if constexpr (kOne + 1 < kExponents) {
    ExchangeTwo<kOne + 1>(one, two, tile, registers, apart, apart_then);
  }
}

template <int kBytes>
RELAX_INPLACE_TARGET inline void Load(const ExchangedTile& how, const char* source,
                                      const char* later, char* tile) {
  for (const ExchangedTile::Run& run : how.loads) {
    if constexpr (kBytes >= 16) Prefetch(later + run.offset);
    std::memcpy(tile + run.place, source + run.offset, kBytes);
  }
}

template <int kBytes>
RELAX_INPLACE_TARGET inline void Store(const ExchangedTile& how, const char* tile, char* target,
                                       bool streams) {
  if constexpr (kBytes >= sizeof(Register)) {
    if (streams) {
      for (const ExchangedTile::Run& run : how.stores) {
        for (int i = 0; i < kBytes; i += sizeof(Register)) {
          StreamRegister(target + run.offset + i, tile + run.place + i);
        }
      }
      return;
    }
  }
  for (const ExchangedTile::Run& run : how.stores) {
    std::memcpy(target + run.offset, tile + run.place, kBytes);
  }
}

RELAX_INPLACE_TARGET void Move(const ExchangedTile& how, const char* source, const char* later,
                               char* target, bool streams) {
  constexpr int64_t kMostRegisters =
      (int64_t{1} << ExchangedTile::kMostBits) / (64 * RELAX_INPLACE_WORDS);
  alignas(64) Register tile[kMostRegisters];
  char* bytes = reinterpret_cast<char*>(tile);
  if (how.is_partial) std::memset(bytes, 0, how.registers * sizeof(Register));
#define RELAX_INPLACE_CASE(count)           \
  case count:                               \
    Load<count>(how, source, later, bytes); \
    break
  switch (how.load_bytes) {
    RELAX_INPLACE_CASE(1);
    RELAX_INPLACE_CASE(2);
    RELAX_INPLACE_CASE(4);
    RELAX_INPLACE_CASE(8);
    RELAX_INPLACE_CASE(16);
    RELAX_INPLACE_CASE(32);
    RELAX_INPLACE_CASE(64);
  }
#undef RELAX_INPLACE_CASE
  const std::vector<ExchangedTile::Exchange>& all = how.exchanges;
  for (size_t i = 0; i < all.size(); ++i) {
    const int one = all[i].in_register;
    const int two = i + 1 < all.size() ? all[i + 1].in_register : one;
    if (one == ExchangedTile::kWhole) {
      ExchangeAll<ExchangedTile::kWhole>(tile, how.registers, all[i].apart);
    } else if (one == two || two == ExchangedTile::kWhole || all[i].apart == all[i + 1].apart) {
      ExchangeAt(one, tile, how.registers, all[i].apart);
    } else {
      ExchangeTwo(one, two, tile, how.registers, all[i].apart, all[i + 1].apart);
      ++i;
    }
  }
  if (how.pattern != 0) {
    for (int64_t i = 0; i < how.registers; ++i) tile[i] ^= Register{} + how.pattern;
  }
#define RELAX_INPLACE_CASE(count)              \
  case count:                                  \
    Store<count>(how, bytes, target, streams); \
    break
  switch (how.store_bytes) {
    RELAX_INPLACE_CASE(1);
    RELAX_INPLACE_CASE(2);
    RELAX_INPLACE_CASE(4);
    RELAX_INPLACE_CASE(8);
    RELAX_INPLACE_CASE(16);
    RELAX_INPLACE_CASE(32);
    RELAX_INPLACE_CASE(64);
  }
#undef RELAX_INPLACE_CASE
}
