// Permutations of units in place: cycles, cut into segments that threads follow at once.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "processors.h"
#include "register_transpose.h"
#include "relayout.h"

namespace relax_inplace {

/*! \brief What is saved, prefetched and moved at once; larger units are moved in chunks. */
constexpr int64_t kMostUnit = 4096;
/*! \brief Units that are marked as visited at a time, a bit each. */
constexpr int64_t kWindow = int64_t{1} << 22;
constexpr int64_t kMostSegments = int64_t{1} << 14;
/*! \brief Bytes of saved units. */
constexpr int64_t kSaved = int64_t{1} << 20;
constexpr int64_t kShortestSegment = 256;
constexpr int kMostAhead = 16;

/*!
 * \brief A part of a cycle: the unit at `start` is taken from its source, that from its own, and so
 *        on `length` times. The last source is the start of the segment that follows.
 */
struct UnitPermutation::Segment {
  int64_t start;
  int64_t length;
  int64_t save;  // of its start
  int64_t last;  // the save of the last source
};

/*! \brief Segments of whole cycles, and places for their saves. */
struct UnitPermutation::Found {
  Segment* segments;
  char* saves;
  int64_t count;
};

UnitPermutation::UnitPermutation(const Piece& given) {
  const Piece piece = Normalised(given);
  unit_ = piece.element;
  read_ = piece.read / unit_;
  digits_.assign(piece.digits.rbegin(), piece.digits.rend());
  units_ = 1;
  for (Digit& digit : digits_) {
    digit.read /= unit_;
    units_ *= digit.extent;
  }
  saves_ = std::min(kSaved / std::min(unit_, kMostUnit), kMostSegments);
  length_ = std::max(kShortestSegment, units_ / (saves_ / 2 - 2) + 1);
}

int64_t UnitPermutation::ScratchBytes() const {
  return std::min(units_, kWindow) / 8 + 64 + kMostSegments * sizeof(Segment) +
         saves_ * std::min(unit_, kMostUnit);
}

/*! \brief Where the unit of a place of the output is in the input. */
inline int64_t UnitPermutation::Source(int64_t place) const {
  int64_t source = read_;
  if (units_ <= UINT32_MAX) {  // divisions take half the time
    auto left = static_cast<uint32_t>(place);
    for (const Digit& digit : digits_) {
      const auto extent = static_cast<uint32_t>(digit.extent);
      source += left % extent * digit.read;
      left /= extent;
    }
  } else {
    for (const Digit& digit : digits_) {
      source += place % digit.extent * digit.read;
      place /= digit.extent;
    }
  }
  return source;
}

/*! \tparam kBytes Of a unit, or 0 for any number, `bytes`. */
template <int kBytes>
void UnitPermutation::MoveSegments(char* memory, const Found& found, int64_t bytes,
                                   int threads) const noexcept {
  if constexpr (kBytes > 0) bytes = kBytes;
  const auto at = [&](int64_t place) { return memory + place * unit_; };
  const auto copy = [&](char* to, const char* from) {
    std::memcpy(to, from, kBytes > 0 ? kBytes : bytes);
  };
  for (int64_t i = 0; i < found.count; ++i) {
    const Segment& segment = found.segments[i];
    if (segment.save >= 0) copy(found.saves + segment.save * bytes, at(segment.start));
  }
  const int ahead = static_cast<int>(std::clamp<int64_t>(4096 / bytes, 4, kMostAhead));
  const int64_t grain = std::max<int64_t>(1, found.count / (int64_t{8} * threads));
  ShareOut(threads, found.count, grain, [&](int, int64_t begin, int64_t end) {
    alignas(64) char own[kMostUnit];
    std::array<int64_t, kMostAhead> sources;
    for (int64_t i = begin; i < end; ++i) {
      const Segment& segment = found.segments[i];
      if (segment.save < 0) copy(own, at(segment.start));
      int64_t place = segment.start;
      int64_t furthest = place;
      const int64_t moves = segment.length - 1;
      const auto look = [&](int64_t k) {
        if (k >= moves) return;
        furthest = Source(furthest);
        sources[k % kMostAhead] = furthest;
        for (int64_t line = 0; line < bytes; line += 64) Prefetch(at(furthest) + line);
      };
      for (int64_t k = 0; k < ahead; ++k) look(k);
      for (int64_t k = 0; k < moves; ++k) {
        const int64_t source = sources[k % kMostAhead];
        copy(at(place), at(source));
        place = source;
        look(k + ahead);
      }
      copy(at(place), segment.save < 0 ? own : found.saves + segment.last * bytes);
    }
  });
}

void UnitPermutation::RunChunk(char* memory, char* scratch, int64_t bytes,
                               int threads) const noexcept {
  const int64_t window = std::min(units_, kWindow);
  auto* visited = reinterpret_cast<uint64_t*>(scratch);
  Found found;
  found.segments = reinterpret_cast<Segment*>(scratch + (window + 511) / 512 * 64);
  found.saves = reinterpret_cast<char*>(found.segments + kMostSegments);
  found.count = 0;
  int64_t saves = 0;
  const auto move_found = [&] {
    const int most = found.count > 1 ? threads : 1;
    switch (bytes) {
#define RELAX_INPLACE_UNIT(size)                    \
  case size:                                        \
    MoveSegments<size>(memory, found, bytes, most); \
    break
      RELAX_INPLACE_UNIT(1);
      RELAX_INPLACE_UNIT(2);
      RELAX_INPLACE_UNIT(4);
      RELAX_INPLACE_UNIT(8);
      RELAX_INPLACE_UNIT(16);
      RELAX_INPLACE_UNIT(64);
      RELAX_INPLACE_UNIT(128);
      RELAX_INPLACE_UNIT(256);
      RELAX_INPLACE_UNIT(512);
      RELAX_INPLACE_UNIT(1024);
      default:
        MoveSegments<0>(memory, found, bytes, most);
#undef RELAX_INPLACE_UNIT
    }
    found.count = saves = 0;
  };
  for (int64_t low = 0; low < units_; low += window) {
    // A cycle is found in the window of its lowest unit; from a later one it is left at the first
    // unit that is below the window.
    const int64_t high = std::min(low + window, units_);
    std::memset(visited, 0, (window + 7) / 8);
    for (int64_t first = low; first < high; ++first) {
      if (visited[(first - low) / 64] >> (first - low) % 64 & 1) continue;
      const int64_t count = found.count;
      bool is_found_before = false;
      Segment segment{first, 0, -1, -1};
      int64_t place = first;
      do {
        if (place < high) visited[(place - low) / 64] |= uint64_t{1} << (place - low) % 64;
        ++segment.length;
        place = Source(place);
        if (segment.length == length_ && place != first) {
          found.segments[found.count++] = segment;
          segment = {place, 0, -1, -1};
        }
        is_found_before = place < low;
      } while (place != first && !is_found_before);
      found.segments[found.count++] = segment;
      if (is_found_before || (found.count == count + 1 && segment.length == 1)) {
        found.count = count;
      } else if (found.count > count + 1) {
        for (int64_t i = count; i < found.count; ++i) {
          found.segments[i].save = saves++;
          found.segments[i].last = saves;
        }
        found.segments[found.count - 1].last = found.segments[count].save;
      }
      // Room for one more cycle of as many segments as there can be.
      const int64_t next = units_ / length_ + 2;
      if (found.count + next > kMostSegments || saves + next > saves_) move_found();
    }
  }
  move_found();
}

void UnitPermutation::Run(char* memory, char* scratch, int threads) const noexcept {
  for (int64_t offset = 0; offset < unit_; offset += kMostUnit) {
    RunChunk(memory + offset, scratch, std::min(kMostUnit, unit_ - offset), threads);
  }
}

}  // namespace relax_inplace
