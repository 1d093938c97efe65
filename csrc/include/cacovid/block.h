// What a group of threads that share memory can do together.
//
// The cooperative algorithms (*_block.h) are templates over a `Block` with
//   int thread() const, int threads() const   number of this thread, and of all (a power of two)
//   void sync()                               barrier; makes writes visible to the group
//   int64_t* shared()                         [threads()], shared by the group
//   int count(bool yes)                       how many of the threads say yes, in every thread
//   Scan count_before(bool yes)               how many with lower numbers do, and how many in all
// so that the CUDA kernels and the tests, which run them with threads of the host, share them. All
// threads of the group make the same calls of sync, count, count_before and of the functions below.
#pragma once

#include "cacovid/fixed_point.h"

namespace cacovid {

struct Scan {
  int64_t before;  // the values of the threads with lower numbers
  int64_t total;
};

// The sum over the group, in every thread.
template <class Block>
CACOVID_HD int64_t block_sum(Block& block, int64_t value) {
  int64_t* shared = block.shared();
  const int me = block.thread();
  shared[me] = value;
  block.sync();
  for (int half = block.threads() / 2; half > 0; half /= 2) {
    if (me < half) shared[me] += shared[me + half];
    block.sync();
  }
  const int64_t sum = shared[0];
  block.sync();
  return sum;
}

// The largest value of the group, in every thread.
template <class Block>
CACOVID_HD int64_t block_max(Block& block, int64_t value) {
  int64_t* shared = block.shared();
  const int me = block.thread();
  shared[me] = value;
  block.sync();
  for (int half = block.threads() / 2; half > 0; half /= 2) {
    if (me < half) shared[me] = max64(shared[me], shared[me + half]);
    block.sync();
  }
  const int64_t largest = shared[0];
  block.sync();
  return largest;
}

template <class Block>
CACOVID_HD Scan block_scan(Block& block, int64_t value) {
  int64_t* shared = block.shared();
  const int me = block.thread();
  shared[me] = value;
  block.sync();
  for (int step = 1; step < block.threads(); step *= 2) {
    const int64_t earlier = me >= step ? shared[me - step] : 0;
    block.sync();
    shared[me] += earlier;
    block.sync();
  }
  const Scan scan{shared[me] - value, shared[block.threads() - 1]};
  block.sync();
  return scan;
}

// How many of `count` entries precede this thread's `mine`. entry(i) is called by one thread for
// each i and tile; `before(a, b)` orders two entries. Every thread of the group must call it.
template <class Block, class Entry, class Before>
CACOVID_HD int64_t block_rank(Block& block, int64_t count, uint64_t mine, const Entry& entry,
                              const Before& before) {
  int64_t* shared = block.shared();
  int64_t rank = 0;
  for (int64_t tile = 0; tile < count; tile += block.threads()) {
    const int64_t i = tile + block.thread();
    if (i < count) shared[block.thread()] = static_cast<int64_t>(entry(i));
    block.sync();
    const int64_t size = min64(block.threads(), count - tile);
    for (int64_t j = 0; j < size; ++j) {
      if (before(static_cast<uint64_t>(shared[j]), mine)) ++rank;
    }
    block.sync();
  }
  return rank;
}

// Chooses the `keep` <= count entries of the largest keys, ties to the lowest index.
//
// key(i): uint32 of entry i, asked for by one thread, again and again. visit(i, chosen): called by
// every thread of the group, tile after tile in ascending order; beyond `count` nothing is chosen.
// The threshold is found bit by bit: 32 counts of each tile, where ranks take `count` comparisons.
template <class Block, class Key, class Visit>
CACOVID_HD void block_choose(Block& block, int64_t count, int64_t keep, const Key& key,
                             const Visit& visit) {
  const int64_t step = block.threads();
  uint32_t threshold = 0;  // the keep-th largest key
  for (int bit = 31; bit >= 0; --bit) {
    const uint32_t candidate = threshold | (1u << bit);
    int64_t votes = 0;
    for (int64_t tile = 0; tile < count; tile += step) {
      const int64_t i = tile + block.thread();
      votes += block.count(i < count && key(i) >= candidate);
    }
    if (votes >= keep) threshold = candidate;
  }
  int64_t left = keep;  // of the entries that equal the threshold
  for (int64_t tile = 0; tile < count; tile += step) {
    const int64_t i = tile + block.thread();
    left -= block.count(i < count && key(i) > threshold);
  }
  for (int64_t tile = 0; tile < count; tile += step) {
    const int64_t i = tile + block.thread();
    const uint32_t own = i < count ? key(i) : 0;
    const bool equal = i < count && own == threshold;
    const Scan scan = block.count_before(equal);
    visit(i, (i < count && own > threshold) || (equal && scan.before < left));
    left -= scan.total;
  }
}

struct HigherFirst {
  CACOVID_HD bool operator()(uint64_t a, uint64_t b) const { return a > b; }
};

struct LowerFirst {
  CACOVID_HD bool operator()(uint64_t a, uint64_t b) const { return a < b; }
};

// Keys of an array of scores, for block_choose; no array: all are equal.
struct ScoreKey {
  const float* scores;
  CACOVID_HD uint32_t operator()(int64_t i) const {
    return sort_key(scores == nullptr ? 0.0f : scores[i]);
  }
};

// Packed keys of an array of scores, as entries of block_rank.
struct KeyOf {
  const float* scores;
  CACOVID_HD uint64_t operator()(int64_t i) const {
    return packed_key(scores[i], static_cast<uint32_t>(i));
  }
};

}  // namespace cacovid
