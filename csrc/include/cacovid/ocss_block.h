// The token rollouts by groups of threads: the same numbers as ocss.h, item by item.
#pragma once

#include "cacovid/clip_max_block.h"
#include "cacovid/ocss.h"

namespace cacovid {

// What all rollouts of a frame share; in memory that the group can see.
struct FrameTables {
  int32_t* order;    // [n], token at each rank
  float* ranked;     // [n], score at each rank
  float* weights;    // [n], of the token at each rank
  int64_t* prefix;   // [l], running sums of the sub-space weights
  int64_t* scratch;  // [n + 2*l]
};

// Integers of scratch and prefix of one frame.
CACOVID_HD int64_t frame_integers(const OcssPlan& plan) { return plan.tokens + 3 * plan.subspaces; }

// scores: [n] of one frame, finite.
template <class Block>
CACOVID_HD void frame_tables_block(Block& block, const float* scores, const OcssPlan& plan,
                                   const FrameTables& tables) {
  const int64_t n = plan.tokens, l = plan.subspaces;
  const KeyOf key{scores};
  for (int64_t tile = 0; tile < n; tile += block.threads()) {
    const int64_t i = tile + block.thread();
    const int64_t rank = block_rank(block, n, i < n ? key(i) : 0, key, HigherFirst());
    if (i < n) {
      tables.order[rank] = static_cast<int32_t>(i);
      tables.ranked[rank] = scores[i];
    }
  }
  block.sync();
  int64_t* within = tables.scratch;
  int64_t* masses = tables.scratch + n;
  int64_t mine = 0;
  for (int64_t j = block.thread(); j < l; j += block.threads()) {
    int64_t sum = 0;
    for (int64_t i = plan.start(j); i < plan.start(j + 1); ++i) {
      sum += mass(tables.ranked[i] - tables.ranked[0]);
    }
    masses[j] = sum;
    mine += sum;
  }
  const int64_t total = block_sum(block, mine);
  clip_max_block(block, masses, l, plan.cap, fixed_floor(l), masses + l, tables.prefix);
  int64_t before = 0;
  for (int64_t tile = 0; tile < l; tile += block.threads()) {
    const int64_t j = tile + block.thread();
    const Scan scan = block_scan(block, j < l ? tables.prefix[j] : 0);
    if (j < l) tables.prefix[j] += before + scan.before;
    before += scan.total;
  }
  for (int64_t j = block.thread(); j < l; j += block.threads()) {
    const int64_t denominator = subspace_denominator(tables.ranked, plan, j, total, within);
    for (int64_t i = plan.start(j); i < plan.start(j + 1); ++i) {
      tables.weights[i] = member_weight(within[i], denominator, plan);
    }
  }
}

// One stream of draws: those of a (video, frame, rollout).
struct Stream {
  uint32_t frame;
  uint32_t rollout;
  uint32_t item;
  uint64_t seed;

  CACOVID_HD uint32_t draw(int64_t t) const {
    return draw_block(kOpOcss, static_cast<uint32_t>(t >> 2), frame, rollout, item, seed)
        .word[t & 3];
  }
};

// Times of a sub-space's members, as entries of block_rank.
struct RaceOf {
  const float* weights;  // of the sub-space
  Stream stream;
  CACOVID_HD uint64_t operator()(int64_t i) const {
    return race_entry(stream.draw(1 + i), weights[i], static_cast<uint32_t>(i));
  }
};

struct TokenOf {
  const int32_t* tokens;
  CACOVID_HD uint64_t operator()(int64_t i) const { return static_cast<uint64_t>(tokens[i]); }
};

// Writes the kept tokens of one frame and rollout, ascending.
//
// base: number of the frame's first token. unsorted: [k], scratch. out: [k].
template <class Block>
CACOVID_HD void frame_rollout_block(Block& block, const FrameTables& tables, const OcssPlan& plan,
                                    const Stream& stream, int64_t base, int32_t* unsorted,
                                    int32_t* out) {
  const int me = block.thread(), step = block.threads();
  int64_t begin = 0, size = 0;
  if (stream.rollout > 0) {
    const int64_t j = chosen_subspace(tables.prefix, plan.subspaces, stream.draw(0));
    begin = plan.start(j);
    size = plan.start(j + 1) - begin;
  }
  if (size >= plan.keep) {
    const RaceOf race{tables.weights + begin, stream};
    for (int64_t tile = 0; tile < size; tile += step) {
      const int64_t i = tile + me;
      const int64_t rank = block_rank(block, size, i < size ? race(i) : 0, race, LowerFirst());
      if (i < size && rank < plan.keep) unsorted[rank] = tables.order[begin + i];
    }
  } else {
    begin = min64(begin, plan.tokens - plan.keep);
    for (int64_t i = me; i < plan.keep; i += step) unsorted[i] = tables.order[begin + i];
  }
  block.sync();
  const TokenOf token{unsorted};
  for (int64_t tile = 0; tile < plan.keep; tile += step) {
    const int64_t i = tile + me;
    const bool mine = i < plan.keep;
    const int64_t place = block_rank(block, plan.keep, mine ? token(i) : 0, token, LowerFirst());
    if (mine) out[place] = static_cast<int32_t>(base + unsorted[i]);
  }
}

}  // namespace cacovid
