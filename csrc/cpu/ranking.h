// Sorting for short arrays: what std::sort and std::nth_element lose to branches there.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cacovid/fixed_point.h"

namespace cacovid {

// Ranks a frame's tokens by descending score, ties to the lowest index. A stable radix sort of the
// 32-bit keys: about three times as fast as std::sort at 196 tokens.
class Ranking {
 public:
  explicit Ranking(int64_t count) : from_(count), to_(count) {}

  // order: [count], token at each rank.
  void rank(const float* scores, uint32_t* order) {
    const size_t count = from_.size();
    uint32_t histograms[kPasses][kBuckets] = {};
    for (size_t i = 0; i < count; ++i) {
      const uint32_t key = ~sort_key(scores[i]);  // ascending keys are descending scores
      from_[i] = Entry{key, static_cast<uint32_t>(i)};
      for (int pass = 0; pass < kPasses; ++pass) ++histograms[pass][(key >> (8 * pass)) & 0xFFu];
    }
    for (int pass = 0; pass < kPasses; ++pass) {
      uint32_t* places = histograms[pass];
      uint32_t sum = 0;
      for (int b = 0; b < kBuckets; ++b) {
        const uint32_t size = places[b];
        places[b] = sum;
        sum += size;
      }
      for (const Entry& entry : from_) to_[places[(entry.key >> (8 * pass)) & 0xFFu]++] = entry;
      from_.swap(to_);
    }
    for (size_t i = 0; i < count; ++i) order[i] = from_[i].index;
  }

 private:
  static constexpr int kPasses = 4;
  static constexpr int kBuckets = 256;
  struct Entry {
    uint32_t key;
    uint32_t index;
  };
  std::vector<Entry> from_;
  std::vector<Entry> to_;
};

// Up to this length, counting the smaller entries beats sorting.
constexpr int64_t kCountingLimit = 32;

// Moves the `keep` smallest of `count` different entries to the front, in any order.
inline void keep_smallest(uint64_t* entries, int64_t count, int64_t keep) {
  if (keep >= count) return;
  if (count > kCountingLimit) {
    std::nth_element(entries, entries + keep, entries + count);
    return;
  }
  uint64_t kept[kCountingLimit + 1];
  for (int64_t i = 0; i < count; ++i) {
    int64_t rank = 0;
    for (int64_t j = 0; j < count; ++j) rank += entries[j] < entries[i] ? 1 : 0;
    kept[std::min(rank, keep)] = entries[i];  // place `keep` takes the rejected ones
  }
  std::copy(kept, kept + keep, entries);
}

// Sorts `count` different numbers.
inline void sort_ascending(int32_t* values, int64_t count) {
  if (count > kCountingLimit) {
    std::sort(values, values + count);
    return;
  }
  int32_t sorted[kCountingLimit];
  for (int64_t i = 0; i < count; ++i) {
    int64_t rank = 0;
    for (int64_t j = 0; j < count; ++j) rank += values[j] < values[i] ? 1 : 0;
    sorted[rank] = values[i];
  }
  std::copy(sorted, sorted + count, values);
}

}  // namespace cacovid
