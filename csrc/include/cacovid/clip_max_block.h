// clip_max_fixed of fixed_point.h by a group of threads: the same integers.
#pragma once

#include "cacovid/block.h"

namespace cacovid {

// Arguments as in clip_max_fixed. A thread reads and writes the entries thread(), thread() +
// threads(), ... of the arrays alone, so the caller needs no barrier if it does the same.
//
// A level fixes one entry, and there may be count/3 of them, so that one thread alone would take
// count**2/3 divisions.
template <class Block>
CACOVID_HD void clip_max_block(Block& block, const int64_t* masses, int64_t count, int64_t cap,
                               int64_t floor, int64_t* v, int64_t* out) {
  constexpr int64_t kOpen = -1;   // marks an entry that is not fixed yet
  constexpr int kIndexBits = 15;  // kMaxEntries
  constexpr int64_t kLast = (int64_t{1} << kIndexBits) - 1;
  const int me = block.thread(), step = block.threads();
  int64_t mine = 0;
  for (int64_t j = me; j < count; j += step) mine += masses[j];
  int64_t sum = block_sum(block, mine);
  for (int64_t j = me; j < count; j += step) {
    v[j] = masses[j] * kOne / sum;
    out[j] = kOpen;
  }
  int64_t rest = kOne;
  for (int64_t level = 0;; ++level) {
    mine = 0;
    for (int64_t j = me; j < count; j += step) {
      v[j] = out[j] == kOpen ? max64(v[j], floor) : 0;
      mine += v[j];
    }
    sum = block_sum(block, mine);
    int64_t best = 0;  // value and inverted index in one integer: ties to the lowest index
    for (int64_t j = me; j < count; j += step) {
      v[j] = v[j] * kOne / sum;
      best = max64(best, (v[j] << kIndexBits) | (kLast - j));
    }
    best = block_max(block, best);
    if (level == count - 1 || (best >> kIndexBits) <= cap) {
      for (int64_t j = me; j < count; j += step) {
        if (out[j] == kOpen) out[j] = max64(1, (rest * v[j]) >> kProbBits);
      }
      return;
    }
    const int64_t index = kLast - (best & kLast), fixed = (rest * cap) >> kProbBits;
    if (index % step == me) out[index] = fixed;
    rest -= fixed;
    cap = min64(cap * kOne / (kOne - cap), kCapLimit);
  }
}

}  // namespace cacovid
