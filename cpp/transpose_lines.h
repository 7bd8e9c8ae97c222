// The transposition of a square of whole cache lines. No guard: register_transpose.h includes it
// once for each instruction set, in the namespace that has the registers of it; every function
// there has the attribute RELAX_INPLACE_TARGET.

/*!
 * \brief Transposes squares of units: rows of the input that lie `read` bytes apart, 16 bytes of
 *        each, into registers that each have one of a row of the output from every square.
 */
template <int kUnit>
RELAX_INPLACE_TARGET inline void TransposeSquares(const char* source, int64_t read,
                                                  Register* rows) {
  constexpr int n = 16 / kUnit;
  for (int i = 0; i < n; ++i) rows[i] = Load(source + i * read, n * read);
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
 * \param streams Whether to store past the caches, to addresses of 64 bytes.
 */
template <int kUnit>
RELAX_INPLACE_TARGET inline void TransposeLines(const char* source, int64_t read, char* target,
                                                int64_t into, bool streams) {
  constexpr int n = 16 / kUnit;
  constexpr int kRegisters = 64 / sizeof(Register);  // of a line
  alignas(64) char lines[4 * n][64];
  for (int i = 0; i < 4 * n; ++i) {
    Prefetch(source + i * read + 2 * 64);  // where the next squares but one are, or of no use
    std::memcpy(lines[i], source + i * read, 64);
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
