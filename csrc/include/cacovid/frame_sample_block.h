// The frame rollouts by groups of threads: the same numbers as frame_sample.h, item by item.
#pragma once

#include "cacovid/clip_max_block.h"
#include "cacovid/frame_sample.h"

namespace cacovid {

// Per video: the weights c of its frames, rounded to float32.
//
// scores, weights: [t]. scratch: [3*t].
template <class Block>
CACOVID_HD void frame_weights_block(Block& block, const float* scores, const FramePlan& plan,
                                    float* weights, int64_t* scratch) {
  const int64_t t = plan.frames;
  const int me = block.thread(), step = block.threads();
  int64_t *masses = scratch, *v = scratch + t, *out = v + t;
  int64_t best_key = 0;
  for (int64_t i = me; i < t; i += step) best_key = max64(best_key, sort_key(scores[i]));
  const float best = score_of_key(block_max(block, best_key));
  for (int64_t i = me; i < t; i += step) masses[i] = mass(scores[i] - best);
  clip_max_block(block, masses, t, plan.cap, plan.floor, v, out);
  for (int64_t i = me; i < t; i += step) weights[i] = static_cast<float>(out[i]);
}

struct StoredKey {
  const uint32_t* keys;
  CACOVID_HD uint32_t operator()(int64_t i) const { return keys[i]; }
};

// One rollout of one video: which of its frames are drawn.
//
// scores, weights: [t]. keys: [t], scratch. mask: [t], written.
template <class Block>
CACOVID_HD void frame_draw_block(Block& block, const float* scores, const float* weights,
                                 const FramePlan& plan, uint32_t rollout, uint32_t item,
                                 uint64_t seed, uint32_t* keys, bool* mask) {
  for (int64_t i = block.thread(); i < plan.frames; i += block.threads()) {
    // The smallest times are drawn: the largest of their complements. No two frames are compared
    // but by their times, so an entry's upper half will do.
    keys[i] =
        rollout == 0
            ? sort_key(scores[i])
            : ~static_cast<uint32_t>(
                  frame_entry(weights[i], static_cast<uint32_t>(i), rollout, item, seed) >> 32);
  }
  block_choose(block, plan.frames, plan.choose, StoredKey{keys}, [&](int64_t i, bool chosen) {
    if (i < plan.frames) mask[i] = chosen;
  });
}

}  // namespace cacovid
