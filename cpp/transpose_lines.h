// The transposition of a square of whole cache lines. No guard: register_transpose.h includes it
// once for each instruction set, in the namespace that has the registers of it; every function
// there has the attribute RELAX_INPLACE_TARGET.

/*!
 * \brief Copies lines. Stores of whole lines are faster, where they are not read soon.
 * \param bytes A multiple of 64.
 */
RELAX_INPLACE_TARGET inline void CopyLines(char* target, const char* source, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += sizeof(Register)) Store(target + i, Load(source + i));
}

/*!
 * \brief Transposes squares of units: rows of the input that lie `read` bytes apart, 16 bytes of
 *        each, into registers that each have one of a row of the output from every square.
 */
template <int kUnit>
RELAX_INPLACE_TARGET inline void TransposeSquares(const char* source, int64_t read,
                                                  Register* rows) {
  constexpr int n = 16 / kUnit;
  for (int i = 0; i < n; ++i) rows[i] = Gather(source + i * read, n * read);
  for (int step = 1; step < n; step *= 2) {
    Register next[n];
    for (int i = 0; i < n / 2; ++i) {
      if constexpr (n > 1) {
        next[2 * i] = Low<kUnit>(rows[i], rows[i + n / 2]);
        next[2 * i + 1] = High<kUnit>(rows[i], rows[i + n / 2]);
      }
    }
    for (int i = 0; i < n; ++i) rows[i] = next[i];
  }
}

/*!
 * \brief Transposes a square of lines: `64 / kUnit` rows of the input and of the output.
 *
 * A line of the input is read at once, and one of the output written at once: where rows lie a
 * power of two apart they share few places of a cache, and a line does not stay from one use to the
 * next.
 *
 * \param later The source of a square that is transposed later, or what is near it.
 * \param streams Whether to store past the caches, to addresses of 64 bytes.
 */
template <int kUnit>
RELAX_INPLACE_TARGET inline void TransposeLines(const char* source, const char* later, int64_t read,
                                                char* target, int64_t into, bool streams) {
  constexpr int n = 16 / kUnit;
  constexpr int kRegisters = 64 / sizeof(Register);  // of a line
  alignas(64) char lines[4 * n][64];
  for (int i = 0; i < 4 * n; ++i) {
    Prefetch(later + i * read);
    CopyLines(lines[i], source + i * read, 64);
  }
  for (int x = 0; x < 4; ++x) {
    Register rows[kRegisters][n];
    for (int i = 0; i < kRegisters; ++i) {
      TransposeSquares<kUnit>(lines[i * 4 * n / kRegisters] + x * 16, 64, rows[i]);
    }
    for (int i = 0; i < n; ++i, target += into) {
      for (int k = 0; k < kRegisters; ++k) {
        char* to = target + k * sizeof(Register);
        streams ? Stream(to, rows[k][i]) : Store(to, rows[k][i]);
      }
    }
  }
}

/*!
 * \brief Transposes a matrix of units that has a line of them, or more, along both sides.
 *
 * What squares of lines leave over is covered by squares that overlap others: they write the same.
 *
 * \param columns Rows of the input; `rows` are of the output.
 * \param streams Whether all lines of the output are at addresses of 64 bytes, and are stored past
 *        the caches.
 */
template <int kUnit>
RELAX_INPLACE_TARGET void TransposeMatrix(const char* source, int64_t read, int64_t columns,
                                          char* target, int64_t into, int64_t rows, bool streams) {
  constexpr int64_t kUnits = 64 / kUnit;
  const int64_t rounded = (rows + kUnits - 1) / kUnits * kUnits;
  for (int64_t i = 0; i < columns; i += kUnits) {
    const int64_t column = std::min(i, columns - kUnits);
    const int64_t next_column = std::min(i + kUnits, columns - kUnits);
    for (int64_t j = 0; j < rounded; j += kUnits) {
      const int64_t row = std::min(j, rows - kUnits);
      const int64_t ahead = j + 2 * kUnits;
      const int64_t later = ahead < rounded ? column * read + ahead * kUnit
                                            : next_column * read + (ahead - rounded) * kUnit;
      TransposeLines<kUnit>(source + column * read + row * kUnit, source + later, read,
                            target + row * into + column * kUnit, into, streams && column == i);
    }
  }
}

/*!
 * \brief Moves units along a path: the unit at each of `moves` places becomes that at the next one.
 * \param stride Bytes from one place to the next.
 * \param bytes Of a unit, a multiple of 64.
 * \param known How many places there are to look ahead at.
 */
RELAX_INPLACE_TARGET inline void MoveAlong(char* memory, int64_t stride, int64_t bytes,
                                           const int64_t* places, int64_t moves, int64_t known,
                                           int64_t ahead) {
  for (int64_t k = 0; k < moves; ++k) {
    if (k + ahead < known) {
      const char* later = memory + places[k + ahead] * stride;
      for (int64_t i = 0; i < bytes; i += 64) Prefetch(later + i);
    }
    CopyLines(memory + places[k] * stride, memory + places[k + 1] * stride, bytes);
  }
}
