// Tiles: which exchanges they take, and these for each instruction set.
#include "exchanged_tile.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>
#include <vector>

#include "cache_lines.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace relax_inplace {

namespace {

// Chosen when the library runs: what flags it was compiled with does not matter.
#if defined(__x86_64__) && defined(__GNUC__)
namespace avx512 {
#define RELAX_INPLACE_TARGET __attribute__((target("avx512f,avx512bw,avx512vl")))
#define RELAX_INPLACE_WORDS 8
RELAX_INPLACE_TARGET inline void StreamRegister(char* to, const char* from) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_loadu_si512(from));
}
#include "exchange_bits.h"
#undef RELAX_INPLACE_WORDS
#undef RELAX_INPLACE_TARGET
}  // namespace avx512
namespace avx2 {
#define RELAX_INPLACE_TARGET __attribute__((target("avx2")))
#define RELAX_INPLACE_WORDS 4
RELAX_INPLACE_TARGET inline void StreamRegister(char* to, const char* from) {
  const auto* register_of = reinterpret_cast<const __m256i*>(from);
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_loadu_si256(register_of));
}
#include "exchange_bits.h"
#undef RELAX_INPLACE_WORDS
#undef RELAX_INPLACE_TARGET
}  // namespace avx2
#endif
namespace base {
#define RELAX_INPLACE_TARGET
inline void StreamRegister(char* to, const char* from) { Stream(to, from); }
#if defined(__GNUC__)
#define RELAX_INPLACE_WORDS 2
#else
#define RELAX_INPLACE_WORDS 1
#endif
#include "exchange_bits.h"
constexpr int kWidest = 8 * RELAX_INPLACE_WORDS;
#undef RELAX_INPLACE_WORDS
#undef RELAX_INPLACE_TARGET
}  // namespace base

int ExponentOf(int64_t number) {
  int exponent = 0;
  while (int64_t{1} << exponent < number) ++exponent;
  return exponent;
}

/*! \brief Digits in the order of their steps in a memory; those that are not read last. */
std::vector<int> OrderOf(const std::vector<TileBit>& bits, int64_t TileBit::*step) {
  std::vector<int> order(bits.size());
  for (size_t i = 0; i < bits.size(); ++i) order[i] = static_cast<int>(i);
  std::stable_sort(order.begin(), order.end(), [&](int one, int other) {
    const int64_t a = std::abs(bits[one].*step);
    const int64_t b = std::abs(bits[other].*step);
    return std::make_tuple(a == 0, a) < std::make_tuple(b == 0, b);
  });
  return order;
}

/*! \brief Runs for both values of a digit of their places, at these bits of the memory. */
void AddDigit(int exponent, int64_t low, int64_t high, std::vector<ExchangedTile::Run>* runs) {
  const size_t count = runs->size();
  for (size_t i = 0; i < count; ++i) {
    ExchangedTile::Run run = (*runs)[i];
    (*runs)[i].offset += low;
    runs->push_back({run.place + (1 << exponent), run.offset + high});
  }
}

}  // namespace

// Tests look at what there is for processors of less.
#if !defined(RELAX_INPLACE_WIDEST)
#define RELAX_INPLACE_WIDEST 64
#endif

int WidestRegister() {
#if defined(__x86_64__) && defined(__GNUC__)
  static const bool has_avx512 =
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  static const bool has_avx2 = __builtin_cpu_supports("avx2");
  if (RELAX_INPLACE_WIDEST >= 64 && has_avx512) return 64;
  if (RELAX_INPLACE_WIDEST >= 32 && has_avx2) return 32;
#endif
  return base::kWidest;
}

int ExchangedTile::RunOf(const std::vector<TileBit>& bits, int64_t TileBit::*step) {
  const std::vector<int> order = OrderOf(bits, step);
  int run = 0;
  while (run < static_cast<int>(order.size()) && std::abs(bits[order[run]].*step) == int64_t{1}
                                                                                         << run) {
    ++run;
  }
  return run;
}

bool ExchangedTile::IsPossible(const std::vector<TileBit>& bits) {
  for (int64_t TileBit::*step : {&TileBit::into, &TileBit::read}) {
    const std::vector<int> order = OrderOf(bits, step);
    const int run = RunOf(bits, step);
    if (run < 3) return false;
    for (size_t i = run; i < order.size(); ++i) {
      if (bits[order[i]].*step % 8 != 0) return false;
    }
  }
  return true;
}

ExchangedTile::ExchangedTile(const std::vector<TileBit>& bits, uint64_t given) : pattern(given) {
  constexpr int kNone = -1;
  const int width = ExponentOf(WidestRegister() * 8);
  const std::vector<int> into_order = OrderOf(bits, &TileBit::into);
  const std::vector<int> read_order = OrderOf(bits, &TileBit::read);
  const int into_run = std::min(width, RunOf(bits, &TileBit::into));
  const int read_run = std::min(width, RunOf(bits, &TileBit::read));
  load_bytes = (1 << read_run) / 8;
  store_bytes = (1 << into_run) / 8;

  // Which digit is at which exponent: as they are loaded, and after each exchange. Where there is a
  // choice it is as it is to be stored.
  const int all = static_cast<int>(bits.size());
  std::vector<int> at(std::max(all, width + 2), kNone);
  std::vector<bool> is_placed(all, false);
  const auto place = [&](int exponent, int bit) {
    at[exponent] = bit;
    is_placed[bit] = true;
  };
  for (int i = 0; i < read_run; ++i) place(i, read_order[i]);
  for (int i = read_run; i < into_run; ++i) {
    if (!is_placed[into_order[i]]) place(i, into_order[i]);
  }
  // Those that are to be exchanged are of registers; the others fill the register, and are last.
  std::vector<int> rest;
  for (int i = 0; i < into_run; ++i) rest.push_back(into_order[i]);
  for (int i = all; i-- > into_run;) rest.push_back(into_order[i]);
  int end = static_cast<int>(at.size()) - 1;
  for (const int bit : rest) {
    if (is_placed[bit]) continue;
    while (end >= 0 && at[end] != kNone) --end;
    place(end, bit);
  }

  const std::vector<int> loaded = at;
  std::vector<Exchange> exchanges;
  for (const bool is_within : {false, true}) {
    if (is_within) Interleave(&exchanges);
    for (int i = 0; i < into_run; ++i) {
      const int from =
          static_cast<int>(std::find(at.begin(), at.end(), into_order[i]) - at.begin());
      if (from == i || (from < width && !is_within)) continue;
      const int by = from < width ? static_cast<int>(at.size()) - 1 : from;
      const auto exchange = [&](int within) {
        exchanges.push_back({int64_t{1} << (by - width), within});
        std::swap(at[by], at[within]);
      };
      if (from < width) exchange(from);
      exchange(i);
    }
  }

  // What is read backwards is the other way round in a run that was loaded: it is turned where it
  // is in no run that is stored, or exchanged with itself.
  std::vector<bool> is_turned(all, false);
  for (int bit = 0; bit < all; ++bit) {
    if (bits[bit].read >= 0) continue;
    if (std::find(loaded.begin(), loaded.end(), bit) - loaded.begin() >= read_run) continue;
    const auto last = static_cast<int>(std::find(at.begin(), at.end(), bit) - at.begin());
    if (last >= into_run) {
      is_turned[bit] = true;
    } else {
      const int64_t apart = int64_t{1} << (at.size() - 1 - width);
      exchanges.insert(exchanges.end(), {{apart, last}, {apart, kWhole}, {apart, last}});
    }
  }
  registers = int64_t{1} << (at.size() - width);
  Pair(exchanges);

  first = 0;
  for (const TileBit& bit : bits) first += std::min<int64_t>(bit.read, 0);
  loads = {{0, 0}};
  for (size_t i = 0; i < loaded.size(); ++i) {
    if (loaded[i] == kNone || static_cast<int>(i) < read_run) continue;
    const int64_t step = bits[loaded[i]].read;
    AddDigit(static_cast<int>(i), std::max<int64_t>(-step, 0), std::max<int64_t>(step, 0), &loads);
  }
  stores = {{0, 0}};
  for (size_t i = into_run; i < at.size(); ++i) {
    if (at[i] == kNone) continue;
    const int64_t step = bits[at[i]].into;
    const bool is_other_way = is_turned[at[i]];
    AddDigit(static_cast<int>(i), is_other_way ? step : 0, is_other_way ? 0 : step, &stores);
  }
  for (std::vector<Run>* runs : {&loads, &stores}) {
    for (Run& run : *runs) run = {run.place / 8, run.offset / 8};
    std::sort(runs->begin(), runs->end(),
              [](const Run& one, const Run& other) { return one.offset < other.offset; });
  }
  const int64_t bytes = (int64_t{1} << width) / 8;
  for (int64_t i = 0; i < registers; ++i) in_tile.push_back(i * bytes);
  is_partial = static_cast<int64_t>(loads.size()) * load_bytes < registers * bytes;
  if (load_bytes == bytes) {
    in_source.resize(registers);
    for (const Run& run : loads) in_source[run.place / bytes] = run.offset;
  }
  if (store_bytes == bytes && static_cast<int64_t>(stores.size()) == registers) {
    in_target.resize(registers);
    for (const Run& run : stores) in_target[run.place / bytes] = run.offset;
  }
}

/*!
 * \brief Interleaves registers where all digits of places are exchanged from one of whole bytes on,
 *        up to that of halves of 16 bytes: an instruction each, where a mask takes four.
 */
void ExchangedTile::Interleave(std::vector<Exchange>* exchanges) {
  constexpr int kEnd = 7;  // the exponent of 16 bytes, in bits
  if (WidestRegister() < 16) return;
  std::vector<Exchange> kept;
  std::vector<Exchange> interleaved;  // the highest first
  int lowest = kEnd;
  for (size_t i = exchanges->size(); i-- > 0;) {
    const Exchange& exchange = (*exchanges)[i];
    bool is_next = exchange.kind == lowest - 1 && lowest > 3;
    for (size_t k = 0; k < exchanges->size(); ++k) {
      is_next = is_next && (k == i || (*exchanges)[k].apart != exchange.apart);
    }
    if (is_next) {
      interleaved.push_back(exchange);
      --lowest;
    } else {
      kept.insert(kept.begin(), exchange);
    }
  }
  if (interleaved.size() < 2) return;  // halves are exchanged by one instruction, too
  for (Exchange& exchange : interleaved) exchange.kind = kInterleaved + lowest - 3;
  interleaved.insert(interleaved.end(), kept.begin(), kept.end());
  *exchanges = std::move(interleaved);
}

/*! \brief Two exchanges at a time, where they are of different digits. */
void ExchangedTile::Pair(const std::vector<Exchange>& exchanges) {
  const auto other = [&](int64_t apart) { return apart == 1 ? int64_t{2} : int64_t{1}; };
  for (size_t i = 0; i < exchanges.size(); ++i) {
    const Exchange& one = exchanges[i];
    if (i + 1 < exchanges.size() && exchanges[i + 1].apart != one.apart &&
        IsStep(one.kind, exchanges[i + 1].kind)) {
      const Exchange& two = exchanges[++i];
      steps.push_back({one.kind, two.kind, one.apart, two.apart});
    } else {
      steps.push_back({one.kind, kNothing, one.apart, other(one.apart)});
    }
  }
  if (steps.empty()) steps.push_back({kNothing, kNothing, 1, 2});
}

void ExchangedTile::Move(const char* source, const char* later, char* target, CacheUse use) const {
#if defined(__x86_64__) && defined(__GNUC__)
  if (WidestRegister() == 64) return avx512::Move(*this, source, later, target, use);
  if (WidestRegister() == 32) return avx2::Move(*this, source, later, target, use);
#endif
  base::Move(*this, source, later, target, use);
}

}  // namespace relax_inplace
