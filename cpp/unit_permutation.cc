// Permutations of units in place: cycles, cut into segments that threads follow at once.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <utility>

#include "processors.h"
#include "register_transpose.h"
#include "relayout.h"

namespace relax_inplace {

/*! \brief What is saved and moved at once; larger units are moved in chunks. */
constexpr int64_t kMostUnit = 4096;
constexpr int64_t kLeastUnit = 256;
/*! \brief Units that are marked as visited at a time, a bit each. */
constexpr int64_t kWindow = int64_t{1} << 22;
/*! \brief Places that are found before their units are moved. */
constexpr int64_t kBatch = int64_t{1} << 15;
constexpr int64_t kLongestSegment = 512;
constexpr int64_t kMostSegments = int64_t{1} << 13;
/*!
 * \brief Of a batch: longer cycles are of two segments or more, and one may be cut at either end.
 *        One more is of the first place of a cycle from an earlier batch.
 */
constexpr int64_t kMostSaves = 2 * (kBatch / kLongestSegment + 2);
/*! \brief Bytes that are prefetched. */
constexpr int64_t kAhead = 4096;

/*! \brief Places of a cycle, each of which takes the unit of the next one. */
struct UnitPermutation::Segment {
  int64_t begin;
  int64_t end;
  int64_t save;  // where the unit of its first place is kept meanwhile; or kNone
  int64_t last;  // the saved unit that its last place takes
};
constexpr int64_t kNone = -1;   // no save
constexpr int64_t kOwn = -2;    // that of the first place: the segment is a whole cycle
constexpr int64_t kLater = -3;  // none: it is the first place of the next batch

struct UnitPermutation::Batch {
  int64_t places[kBatch];
  Segment segments[kMostSegments];
  int64_t size;   // of places
  int64_t count;  // of segments
  int64_t begun;  // the save of the first place of a cycle that goes on in the next batch, or kNone
};

/*! \brief Finds cycles, one batch after the other. */
class UnitPermutation::Finder {
 public:
  Finder(const UnitPermutation& units, uint64_t* visited)
      : units_(units), visited_(visited), high_(std::min(units.units_, kWindow)) {
    Clear();
  }

  /*! \brief Fills a batch, with nothing if there are no more cycles. */
  void Fill(Batch* batch) {
    int64_t places = 0;
    int64_t saves = 0;
    int64_t first_save = is_in_cycle_ ? kMostSaves : kNone;
    batch->count = 0;
    while (places < kBatch - 1 && batch->count < kMostSegments) {
      const bool is_start = !is_in_cycle_;
      if (is_start && !FindCycle()) break;
      Segment segment{places, 0, kNone, kOwn};
      const int64_t most = std::min(places + kLongestSegment, kBatch - 1);
      do {
        Visit(place_);
        batch->places[places++] = place_;
        place_ = units_.Source(place_);
      } while (place_ != start_ && places < most);
      segment.end = places;
      is_in_cycle_ = place_ != start_;
      if (is_start && is_in_cycle_) first_save = segment.save = saves++;
      if (!is_start) {
        if (batch->count > 0) segment.save = batch->segments[batch->count - 1].last;
        segment.last = first_save;
      }
      if (is_in_cycle_) segment.last = saves++;
      batch->segments[batch->count++] = segment;
    }
    batch->size = places;
    batch->begun = kNone;
    if (is_in_cycle_ && batch->count > 0) {
      batch->segments[batch->count - 1].last = kLater;
      place_ = batch->places[places - 1];
      batch->begun = first_save;
    }
  }

 private:
  void Clear() { std::memset(visited_, 0, (high_ - low_ + 63) / 64 * sizeof(uint64_t)); }

  bool IsVisited(int64_t place) const {
    return visited_[(place - low_) / 64] >> (place - low_) % 64 & 1;
  }

  void Visit(int64_t place) {
    if (place < high_) visited_[(place - low_) / 64] |= uint64_t{1} << (place - low_) % 64;
  }

  /*! \brief Sets the start of the next cycle of 2 or more. */
  bool FindCycle() {
    for (;; ++next_) {
      if (next_ == high_) {
        if (high_ == units_.units_) return false;
        low_ = high_;
        high_ = std::min(low_ + kWindow, units_.units_);
        Clear();
      }
      if (IsVisited(next_) || units_.Source(next_) == next_ || !IsLowest(next_)) continue;
      start_ = place_ = next_++;
      return true;
    }
  }

  /*! \brief Whether no earlier window has a place of a cycle. */
  bool IsLowest(int64_t start) {
    if (low_ == 0) return true;
    int64_t place = start;
    do {
      Visit(place);
      place = units_.Source(place);
    } while (place != start && place >= low_);
    return place == start;
  }

  const UnitPermutation& units_;
  uint64_t* visited_;  // of [low_, high_)
  int64_t low_ = 0;
  int64_t high_;
  int64_t next_ = 0;  // to be looked at
  int64_t start_ = 0;
  int64_t place_ = 0;
  bool is_in_cycle_ = false;
};

UnitPermutation::UnitPermutation(const Piece& given) {
  const Piece piece = Normalised(given);
  unit_ = piece.element;
  units_ = 1;
  // A large unit is several that stay together; or it is moved in chunks, if it cannot be divided.
  for (int64_t unit = kMostUnit; unit_ > kMostUnit && unit >= kLeastUnit; unit -= kLeastUnit) {
    if (unit_ % unit != 0) continue;
    units_ = unit_ / unit;
    unit_ = unit;
    steps_.push_back({units_, 1, UINT64_MAX / static_cast<uint64_t>(units_) + 1});
  }
  read_ = piece.read / unit_;
  for (size_t i = piece.digits.size(); i-- > 0;) {
    const Digit& digit = piece.digits[i];
    units_ *= digit.extent;
    const uint64_t inverse = UINT64_MAX / static_cast<uint64_t>(digit.extent) + 1;
    steps_.push_back({digit.extent, digit.read / unit_, inverse});
  }
}

int64_t UnitPermutation::ScratchBytes() const {
  return kWindow / 8 + 2 * sizeof(Batch) + (kMostSaves + 1) * std::min(unit_, kMostUnit);
}

/*! \brief Where the unit of a place of the output is in the input. */
inline int64_t UnitPermutation::Source(int64_t place) const {
  int64_t source = read_;
  for (const Step& step : steps_) {
    int64_t outer;
#if defined(__SIZEOF_INT128__)
    if (units_ <= UINT32_MAX) {  // the product with the inverse is exact, and takes half the time
      __extension__ using Product = unsigned __int128;
      outer = static_cast<int64_t>(Product{step.inverse} * static_cast<uint64_t>(place) >> 64);
    } else  // NOLINT
#endif
      outer = place / step.extent;
    source += (place - outer * step.extent) * step.read;
    place = outer;
  }
  return source;
}

void UnitPermutation::MoveSegment(char* memory, const Batch& batch, const Segment& segment,
                                  const char* saves, int64_t bytes) const {
  const int64_t moves = segment.end - 1 - segment.begin;
  const int64_t* places = batch.places + segment.begin;
  const auto at = [&](int64_t k) { return memory + places[k] * unit_; };
  char own[kMostUnit];
  const char* last = segment.last == kOwn ? own : saves + segment.last * bytes;
  if (segment.last == kOwn) std::memcpy(own, at(0), bytes);
  if (bytes % 64 == 0) {
    const auto move_along = WidestRegister() == 64   ? avx512::MoveAlong
                            : WidestRegister() == 32 ? avx2::MoveAlong
                                                     : base::MoveAlong;
    // The places that are known are of the next segments too: they are moved next.
    move_along(memory, unit_, bytes, places, moves, batch.size - segment.begin,
               std::clamp<int64_t>(kAhead / bytes, 2, 16));
  } else {
    for (int64_t k = 0; k < moves; ++k) {
      if (segment.begin + k + 16 < batch.size) Prefetch(at(k + 16));
      std::memcpy(at(k), at(k + 1), bytes);
    }
  }
  if (segment.last != kLater) std::memcpy(at(moves), last, bytes);
}

void UnitPermutation::MoveChunk(char* memory, char* scratch, int64_t bytes,
                                int threads) const noexcept {
  Finder finder(*this, reinterpret_cast<uint64_t*>(scratch));
  auto* now = reinterpret_cast<Batch*>(scratch + kWindow / 8);
  auto* next = now + 1;
  auto* saves = reinterpret_cast<char*>(now + 2);
  for (finder.Fill(now); now->count > 0; std::swap(now, next)) {
    for (int64_t i = 0; i < now->count; ++i) {
      const Segment& segment = now->segments[i];
      if (segment.save < 0) continue;
      std::memcpy(saves + segment.save * bytes, memory + now->places[segment.begin] * unit_, bytes);
    }
    // The next batch is found by one of the threads that move this one.
    ShareOut(threads, now->count + 1, now->count / 64 + 1, [&](int, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        if (i == 0) {
          finder.Fill(next);
        } else {
          MoveSegment(memory, *now, now->segments[i - 1], saves, bytes);
        }
      }
    });
    if (now->begun != kNone) {
      std::memmove(saves + kMostSaves * bytes, saves + now->begun * bytes, bytes);
    }
  }
}

void UnitPermutation::Run(char* memory, char* scratch, int threads) const noexcept {
  for (int64_t offset = 0; offset < unit_; offset += kMostUnit) {
    const int64_t bytes = std::min(kMostUnit, unit_ - offset);
    const int64_t most = std::max<int64_t>(1, units_ * bytes >> 20);
    MoveChunk(memory + offset, scratch, bytes, static_cast<int>(std::min<int64_t>(most, threads)));
  }
}

}  // namespace relax_inplace
