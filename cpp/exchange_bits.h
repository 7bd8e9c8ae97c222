// The exchange of digits in registers. No guard: exchanged_tile.cc includes it once for each
// instruction set, in a namespace, with RELAX_INPLACE_TARGET, the attribute of every function, and
// RELAX_INPLACE_WORDS, how many words of 64 bits a register has.

constexpr int kWords = RELAX_INPLACE_WORDS;
#if defined(__GNUC__)
typedef uint64_t Register __attribute__((vector_size(8 * kWords), may_alias));
typedef uint8_t Bytes __attribute__((vector_size(8 * kWords)));
#else
typedef uint64_t Register;
#endif

#if defined(__clang__)
#define RELAX_INPLACE_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#elif defined(__GNUC__)
#define RELAX_INPLACE_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Bytes{__VA_ARGS__})
#endif

#if defined(__GNUC__)
/*!
 * \brief Which byte of two registers, of which the second follows the first, is at a place of one
 *        of the two that an exchange makes.
 */
constexpr uint8_t ExchangedByte(int kind, bool is_other, int place) {
  constexpr int kBytes = 8 * kWords;
  if (kind >= ExchangedTile::kInterleaved) {
    const int unit = 1 << (kind - ExchangedTile::kInterleaved);
    const int lane = place / 16 * 16;
    const int at = place % 16 / unit;
    return (at % 2 ? kBytes : 0) + lane + (is_other ? 8 : 0) + at / 2 * unit + place % unit;
  }
  const int digit = 1 << (kind - 3);
  const int from = is_other ? place | digit : place & ~digit;
  return (place & digit ? kBytes : 0) + from;
}

template <int kKind, bool kIsOther, size_t... kPlaces>
RELAX_INPLACE_TARGET inline Register Shuffled(Register one, Register other,
                                              std::index_sequence<kPlaces...>) {
  const auto a = (Bytes)one;  // NOLINT
  const auto b = (Bytes)other;
  return (Register)RELAX_INPLACE_SHUFFLE(a, b, ExchangedByte(kKind, kIsOther, kPlaces)...);
}
#endif

/*! \brief Exchanges the number of two registers, and a digit of places in them. */
template <int kKind>
RELAX_INPLACE_TARGET inline void Exchange(Register* one, Register* other) {
  const Register a = *one;
  const Register b = *other;
  if constexpr (kKind == ExchangedTile::kNothing) {
  } else if constexpr (kKind == ExchangedTile::kWhole) {
    *one = b;
    *other = a;
  } else if constexpr (kKind < 6) {
    constexpr uint64_t kMasks[] = {0x5555555555555555, 0x3333333333333333, 0x0f0f0f0f0f0f0f0f,
                                   0x00ff00ff00ff00ff, 0x0000ffff0000ffff, 0x00000000ffffffff};
    const Register low = Register{} + kMasks[kKind];
    *one = (a & low) | ((b << (1 << kKind)) & ~low);
    *other = ((a >> (1 << kKind)) & low) | (b & ~low);
  } else {
#if defined(__GNUC__)
    constexpr std::make_index_sequence<8 * kWords> kPlaces;
    *one = Shuffled<kKind, false>(a, b, kPlaces);
    *other = Shuffled<kKind, true>(a, b, kPlaces);
#endif
  }
}
#undef RELAX_INPLACE_SHUFFLE

/*! \brief Where the registers of a tile are, before or after a step. */
struct Place {
  char* memory;
  const int64_t* offsets;  // bytes, of each register
  bool streams = false;    // past the caches: registers are lines

  RELAX_INPLACE_TARGET Register Load(int64_t i) const {
    Register loaded;
    std::memcpy(&loaded, memory + offsets[i], sizeof(Register));
    return loaded;
  }
  RELAX_INPLACE_TARGET void Store(int64_t i, Register stored) const {
    if (streams) {
      StreamRegister(memory + offsets[i], reinterpret_cast<const char*>(&stored));
    } else {
      std::memcpy(memory + offsets[i], &stored, sizeof(Register));
    }
  }
};

/*! \brief A step, of 4 registers each time: half of the loads and stores of two exchanges. */
template <int kOne, int kTwo>
RELAX_INPLACE_TARGET void ExchangeAll(Place from, Place to, int64_t registers, int64_t apart,
                                      int64_t apart_then, Register pattern) {
  const int64_t inner = std::min(apart, apart_then);
  const int64_t outer = std::max(apart, apart_then);
  for (int64_t first = 0; first < registers; first += 2 * outer) {
    for (int64_t second = first; second < first + outer; second += 2 * inner) {
      for (int64_t i = second; i < second + inner; ++i) {
        Register a = from.Load(i);
        Register b = from.Load(i + apart);
        Register c = from.Load(i + apart_then);
        Register d = from.Load(i + apart + apart_then);
        Exchange<kOne>(&a, &b);
        Exchange<kOne>(&c, &d);
        Exchange<kTwo>(&a, &c);
        Exchange<kTwo>(&b, &d);
        to.Store(i, a ^ pattern);
        to.Store(i + apart, b ^ pattern);
        to.Store(i + apart_then, c ^ pattern);
        to.Store(i + apart + apart_then, d ^ pattern);
      }
    }
  }
}

using StepFunction = void (*)(Place, Place, int64_t, int64_t, int64_t, Register);

template <int kOne, int kTwo>
constexpr StepFunction FunctionOf() {
  if constexpr (ExchangedTile::IsStep(kOne, kTwo)) return ExchangeAll<kOne, kTwo>;
  return nullptr;
}

/*! \brief The function of two kinds of exchanges, which are a step. */
template <size_t... kPairs>
StepFunction StepOf(int one, int two, std::index_sequence<kPairs...>) {
  constexpr int kKinds = ExchangedTile::kKinds;
  static constexpr StepFunction kSteps[] = {FunctionOf<kPairs / kKinds, kPairs % kKinds>()...};
  return kSteps[one * kKinds + two];
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
RELAX_INPLACE_TARGET inline void Store(const ExchangedTile& how, const char* tile, char* target) {
  for (const ExchangedTile::Run& run : how.stores) {
    std::memcpy(target + run.offset, tile + run.place, kBytes);
  }
}

// A call for runs of as many bytes as are known when it runs.
#define RELAX_INPLACE_RUNS_OF(bytes, call) \
  switch (bytes) {                         \
    case 1:                                \
      call(1);                             \
      break;                               \
    case 2:                                \
      call(2);                             \
      break;                               \
    case 4:                                \
      call(4);                             \
      break;                               \
    case 8:                                \
      call(8);                             \
      break;                               \
    case 16:                               \
      call(16);                            \
      break;                               \
    case 32:                               \
      call(32);                            \
      break;                               \
    case 64:                               \
      call(64);                            \
      break;                               \
  }

RELAX_INPLACE_TARGET void Move(const ExchangedTile& how, const char* source, const char* later,
                               char* target, CacheUse use) {
  constexpr int64_t kMostRegisters = (int64_t{1} << ExchangedTile::kMostBits) / (64 * kWords);
  alignas(64) Register tile[kMostRegisters];
  char* bytes = reinterpret_cast<char*>(tile);
  // Of a line that is far, all is read at once.
  const bool loads_whole = !how.in_source.empty() && (!use.streams || use.is_near);
  const bool is_of_lines = sizeof(Register) == kLine;
  const bool stores_whole = !how.in_target.empty() && (!use.streams || is_of_lines);
  if (loads_whole) {
    for (const ExchangedTile::Run& run : how.loads) Prefetch(later + run.offset);
  } else {
    if (how.is_partial) std::memset(bytes, 0, how.registers * sizeof(Register));
#define RELAX_INPLACE_LOAD(count) Load<count>(how, source, later, bytes)
    RELAX_INPLACE_RUNS_OF(how.load_bytes, RELAX_INPLACE_LOAD)
#undef RELAX_INPLACE_LOAD
  }
  const Place in_tile{bytes, how.in_tile.data()};
  // What is read is not written: a place is of both.
  Place from = loads_whole ? Place{const_cast<char*>(source), how.in_source.data()} : in_tile;
  for (size_t i = 0; i < how.steps.size(); ++i) {
    const ExchangedTile::Step& step = how.steps[i];
    const bool is_last = i + 1 == how.steps.size();
    const Place to =
        is_last && stores_whole ? Place{target, how.in_target.data(), use.streams} : in_tile;
    const Register pattern = Register{} + (is_last ? how.pattern : 0);
    StepOf(step.one, step.two,
           std::make_index_sequence<ExchangedTile::kKinds * ExchangedTile::kKinds>())(
        from, to, how.registers, step.apart, step.apart_then, pattern);
    from = in_tile;
  }
  if (stores_whole) return;
  if (use.streams && how.store_bytes == sizeof(Register)) {
    for (const ExchangedTile::Run& run : how.stores) {
      StreamRegister(target + run.offset, bytes + run.place);
    }
    return;
  }
#define RELAX_INPLACE_STORE(count) Store<count>(how, bytes, target)
  RELAX_INPLACE_RUNS_OF(how.store_bytes, RELAX_INPLACE_STORE)
#undef RELAX_INPLACE_STORE
}
#undef RELAX_INPLACE_RUNS_OF
