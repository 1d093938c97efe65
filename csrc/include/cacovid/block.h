// What a group of threads that share memory can do together.
//
// The cooperative algorithms (select_block.h, ocss_block.h) are templates over a `Block` with
//   int thread() const, int threads() const   number of this thread, and of all (a power of two)
//   void sync()                               barrier; makes writes visible to the group
//   int64_t* shared()                         [threads()], shared by the group
// so that the CUDA kernels and the tests, which run them with threads of the host, share them.
#pragma once

#include "cacovid/fixed_point.h"

namespace cacovid {

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

struct Scan {
  int64_t before;  // the values of the threads with lower numbers
  int64_t total;
};

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

struct HigherFirst {
  CACOVID_HD bool operator()(uint64_t a, uint64_t b) const { return a > b; }
};

struct LowerFirst {
  CACOVID_HD bool operator()(uint64_t a, uint64_t b) const { return a < b; }
};

// Packed keys of an array of scores, as entries of block_rank.
struct KeyOf {
  const float* scores;
  CACOVID_HD uint64_t operator()(int64_t i) const {
    return packed_key(scores == nullptr ? 0.0f : scores[i], static_cast<uint32_t>(i));
  }
};

}  // namespace cacovid
