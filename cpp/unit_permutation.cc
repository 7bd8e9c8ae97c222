// Permutations of units in place: cycles, cut into segments that threads follow at once.
#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include "bit_runs.h"
#include "cache_lines.h"
#include "processors.h"
#include "relayout.h"

namespace relax_inplace {

/*! \brief Bytes that are saved and moved at once; larger units are moved in chunks. */
constexpr int64_t kMostUnit = 4096;
constexpr int64_t kLeastUnit = 256;
/*! \brief With all the scratch that there is use for: see `window_`, `batch_`. */
constexpr int64_t kWindow = int64_t{1} << 22;
constexpr int64_t kBatch = int64_t{1} << 15;
constexpr int64_t kLeastBatch = int64_t{1} << 10;
constexpr int64_t kLongestSegment = 512;
constexpr int64_t kPlacesOfSegment = 4;  // of a batch that is full of segments
/*!
 * \brief Of a batch: longer cycles are of two segments or more, and one may be cut at either end.
 *        One more is of the first place of a cycle from an earlier batch.
 */
static int64_t MostSaves(int64_t batch) { return 2 * (batch / kLongestSegment + 2); }
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
  static int64_t BytesOf(int64_t batch) {
    return batch * sizeof(int64_t) + batch / kPlacesOfSegment * sizeof(Segment);
  }
  Batch(char* scratch, int64_t batch)
      : places(reinterpret_cast<int64_t*>(scratch)),
        segments(reinterpret_cast<Segment*>(scratch + batch * sizeof(int64_t))) {}

  int64_t* places;
  Segment* segments;
  int64_t size;   // of places
  int64_t count;  // of segments
  int64_t begun;  // the save of the first place of a cycle that goes on in the next batch, or kNone
};

/*! \brief Finds cycles, one batch after the other. */
class UnitPermutation::Finder {
 public:
  Finder(const UnitPermutation& units, uint64_t* visited)
      : units_(units), visited_(visited), high_(std::min(units.units_, units.window_)) {
    Clear();
  }

  /*! \brief Fills a batch, with nothing if there are no more cycles. */
  void Fill(Batch* batch) {
    int64_t places = 0;
    int64_t saves = 0;
    const int64_t most_places = units_.batch_ - 1;
    int64_t first_save = is_in_cycle_ ? MostSaves(units_.batch_) : kNone;
    batch->count = 0;
    while (places < most_places && batch->count < units_.batch_ / kPlacesOfSegment) {
      const bool is_start = !is_in_cycle_;
      if (is_start && !FindCycle()) break;
      Segment segment{places, 0, kNone, kOwn};
      const int64_t most = std::min(places + kLongestSegment, most_places);
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
        high_ = std::min(low_ + units_.window_, units_.units_);
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

/*! \brief The largest unit of which all places are multiples, and sizes. */
static int64_t UnitOf(const std::vector<Piece>& pieces) {
  int64_t unit = 0;
  for (const Piece& piece : pieces) {
    unit = std::gcd(unit, std::gcd(piece.element, std::gcd(piece.into, piece.read)));
    for (const Digit& digit : piece.digits) {
      unit = std::gcd(unit, std::gcd(digit.into, digit.read));
    }
  }
  return unit;
}

UnitPermutation::UnitPermutation(const std::vector<Piece>& pieces, int64_t most_scratch) {
  for (Piece piece : pieces) {
    piece.pattern = 0;
    pieces_.push_back(Normalised(piece));
  }
  unit_bits_ = pieces_.size() == 1 ? pieces_.front().element : UnitOf(pieces_);
  if (unit_bits_ % 8 != 0) unit_bits_ = std::gcd(unit_bits_, 8);  // bits of one byte
  unit_ = unit_bits_ / 8;
  units_ = 0;
  for (Piece& piece : pieces_) {
    int64_t units = piece.element /= unit_bits_;
    piece.into /= unit_bits_;
    piece.read /= unit_bits_;
    for (Digit& digit : piece.digits) {
      units *= digit.extent;
      digit.into /= unit_bits_;
      digit.read /= unit_bits_;
    }
    units_ += units;
  }
  if (pieces_.size() == 1) {
    const Piece piece = std::move(pieces_.front());
    pieces_.clear();
    const auto push = [&](int64_t extent, int64_t read) {
      steps_.push_back({extent, read, UINT64_MAX / static_cast<uint64_t>(extent) + 1});
    };
    if (piece.element > 1) push(piece.element, 1);
    int64_t times = 1;
    // A large unit is several that stay together; or moved in chunks, if it cannot be divided.
    for (int64_t unit = kMostUnit; unit_ > kMostUnit && unit >= kLeastUnit; unit -= kLeastUnit) {
      if (unit_ % unit != 0) continue;
      times = unit_ / unit;
      unit_ = unit;
      push(times, 1);
    }
    read_ = piece.read * times;
    for (size_t i = piece.digits.size(); i-- > 0;) {
      push(piece.digits[i].extent, piece.digits[i].read * times);
    }
    units_ *= times;
  }
  window_ = kWindow;
  batch_ = kBatch;
  while (batch_ > kLeastBatch && ScratchBytes() > most_scratch) {
    window_ /= 2;
    batch_ /= 2;
  }
}

int64_t UnitPermutation::ScratchBytes() const {
  return window_ / 8 + 2 * Batch::BytesOf(batch_) +
         (MostSaves(batch_) + 1) * std::clamp<int64_t>(unit_, 1, kMostUnit);
}

/*! \brief Where the unit of a place of the output is in the input. */
inline int64_t UnitPermutation::Source(int64_t place) const {
  if (steps_.empty()) return SourceInPieces(place);
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

int64_t UnitPermutation::SourceInPieces(int64_t place) const {
  for (const Piece& piece : pieces_) {
    int64_t rest = place - piece.into;
    if (rest < 0) continue;
    int64_t source = piece.read;
    bool is_inside = true;
    for (const Digit& digit : piece.digits) {
      const int64_t index = rest / digit.into;
      is_inside = is_inside && index < digit.extent;
      rest -= index * digit.into;
      source += index * digit.read;
    }
    if (is_inside && rest < piece.element) return source + rest;
  }
  return place;
}

void UnitPermutation::MoveUnit(char* target, int64_t into, const char* source, int64_t read,
                               int64_t bytes) const {
  if (unit_ > 0) {
    std::memcpy(target + into * unit_, source + read * unit_, bytes);
  } else {
    MoveBits(source, read * unit_bits_, target, into * unit_bits_, unit_bits_, 0);
  }
}

/*! \brief The same for a unit that is saved: each in bytes of its own. */
void UnitPermutation::Save(char* saves, int64_t save, const char* memory, int64_t place,
                           int64_t bytes) const {
  MoveUnit(saves + save * bytes, 0, memory, place, bytes);
}

void UnitPermutation::MoveSegment(char* memory, const Batch& batch, const Segment& segment,
                                  const char* saves, int64_t bytes) const {
  const int64_t moves = segment.end - 1 - segment.begin;
  const int64_t* places = batch.places + segment.begin;
  // The places that are known are of the next segments too: they are moved next.
  const int64_t known = batch.size - segment.begin;
  const int64_t ahead = std::clamp<int64_t>(kAhead / bytes, 2, 16);
  char own[kMostUnit];
  const char* last = segment.last == kOwn ? own : saves + segment.last * bytes;
  if (segment.last == kOwn) Save(own, 0, memory, places[0], bytes);
  for (int64_t k = 0; k < moves; ++k) {
    if (k + ahead < known) {
      const char* later = memory + places[k + ahead] * unit_bits_ / 8;
      for (int64_t i = 0; i < bytes; i += kLine) Prefetch(later + i);
    }
    MoveUnit(memory, places[k], memory, places[k + 1], bytes);
  }
  if (segment.last != kLater) MoveUnit(memory, places[moves], last, 0, bytes);
}

void UnitPermutation::MoveChunk(char* memory, char* scratch, int64_t bytes,
                                int threads) const noexcept {
  Finder finder(*this, reinterpret_cast<uint64_t*>(scratch));
  scratch += window_ / 8;
  Batch batches[] = {{scratch, batch_}, {scratch + Batch::BytesOf(batch_), batch_}};
  Batch* now = batches;
  Batch* next = batches + 1;
  char* saves = scratch + 2 * Batch::BytesOf(batch_);
  for (finder.Fill(now); now->count > 0; std::swap(now, next)) {
    for (int64_t i = 0; i < now->count; ++i) {
      const Segment& segment = now->segments[i];
      if (segment.save >= 0) Save(saves, segment.save, memory, now->places[segment.begin], bytes);
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
      std::memmove(saves + MostSaves(batch_) * bytes, saves + now->begun * bytes, bytes);
    }
  }
}

void UnitPermutation::Run(char* memory, char* scratch, int threads) const noexcept {
  if (unit_ == 0) return MoveChunk(memory, scratch, 1, 1);  // units of one byte are of one thread
  for (int64_t offset = 0; offset < unit_; offset += kMostUnit) {
    const int64_t bytes = std::min(kMostUnit, unit_ - offset);
    const int64_t most = std::max<int64_t>(1, units_ * bytes >> 20);
    MoveChunk(memory + offset, scratch, bytes, static_cast<int>(std::min<int64_t>(most, threads)));
  }
}

}  // namespace relax_inplace
