// Squared Euclidean distances in float64 by groups of threads: the sums of csrc/cpu/distances.cpp,
// term by term. Eight threads take turns at the entries of a row, as the eight lanes do there.
#pragma once

#include "cacovid/block.h"
#include "cacovid/elements.h"

namespace cacovid {

constexpr int kDistanceLanes = 8;

// Sums over rows are taken in pieces of this many rows, then over the pieces, each in order.
constexpr int64_t kRowsOfASum = 256;

template <class Element>
CACOVID_HD double as_double(Element value) {
  return static_cast<double>(as_float(value));
}
CACOVID_HD double as_double(double value) { return value; }

CACOVID_HD double squared(double difference) { return difference * difference; }

// The sum over the eight lanes of a team, in the order of lanes.h; in the team's thread `owner`.
template <class Block>
CACOVID_HD double team_sum(Block& block, double value, int owner = 0) {
  int64_t* shared = block.shared();
  const int me = block.thread(), lane = me % kDistanceLanes;
  shared[me] = bit_cast<int64_t>(value);
  block.sync();
  double sum = 0.0;
  if (lane == owner) {
    double lanes[kDistanceLanes];
    CACOVID_UNROLL
    for (int i = 0; i < kDistanceLanes; ++i) lanes[i] = bit_cast<double>(shared[me - lane + i]);
    CACOVID_UNROLL
    for (int half = kDistanceLanes / 2; half > 0; half /= 2) {
      CACOVID_UNROLL
      for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
    }
    sum = lanes[0];
  }
  block.sync();
  return sum;
}

// |scale*row - other|**2 for one row of each team of eight threads; right in the first of them.
//
// Every thread of the group calls it, teams without a row with any other.
template <class Block, class Row, class Other>
CACOVID_HD double team_distance(Block& block, const Row* row, double scale, const Other* other,
                                int64_t width) {
  const int lane = block.thread() % kDistanceLanes;
  const int64_t whole = width / kDistanceLanes * kDistanceLanes;
  double sum = 0.0;
  CACOVID_UNROLL_8
  for (int64_t d = lane; d < whole; d += kDistanceLanes) {
    sum += squared(as_double(row[d]) * scale - as_double(other[d]));
  }
  sum = team_sum(block, sum);
  if (lane == 0) {
    for (int64_t d = whole; d < width; ++d) {
      sum += squared(as_double(row[d]) * scale - as_double(other[d]));
    }
  }
  return sum;
}

// A number that is not negative, and who has it; none: -1. Bits order like such numbers.
struct Best {
  int64_t key;
  int64_t index;
};

CACOVID_HD int64_t distance_key(double distance) { return bit_cast<int64_t>(distance); }

// The largest key of the group, ties to the lowest index; in every thread.
template <class Block>
CACOVID_HD Best block_best(Block& block, Best mine) {
  constexpr int64_t kBeyond = int64_t{1} << 62;
  const int64_t key = block_max(block, mine.key);
  const int64_t place = block_max(block, mine.key == key ? kBeyond - mine.index : 0);
  return Best{key, kBeyond - place};
}

CACOVID_HD Best better(Best a, Best b) {
  return b.key > a.key || (b.key == a.key && b.index < a.index) ? b : a;
}

// Writes the numbers of `count` entries for which chosen(i) holds, ascending, by one group.
template <class Block, class Chosen>
CACOVID_HD void compact_block(Block& block, int64_t count, const Chosen& chosen, int64_t* keep) {
  int64_t seen = 0;
  for (int64_t tile = 0; tile < count; tile += block.threads()) {
    const int64_t i = tile + block.thread();
    const bool yes = i < count && chosen(i);
    const Scan scan = block.count_before(yes);
    if (yes) keep[seen + scan.before] = i;
    seen += scan.total;
  }
}

}  // namespace cacovid
