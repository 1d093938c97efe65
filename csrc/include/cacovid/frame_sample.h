// Frame rollouts; the recipe, normative for every backend, stands in
// cacovid/reference/frame_sample.py.
#pragma once

#include "cacovid/fixed_point.h"
#include "cacovid/philox.h"

namespace cacovid {

// What the sampler needs to know of one video: integers made on the host (reference.frame_plan).
struct FramePlan {
  int64_t frames;  // t
  int64_t choose;  // m, frames that a rollout draws
  int64_t cap;     // of a frame's probability, fixed point
  int64_t floor;   // likewise
};

// Per video: the weights c of its frames, rounded to float32.
//
// scores, weights: [t]. scratch: [3*t].
CACOVID_HD void frame_weights(const float* scores, const FramePlan& plan, float* weights,
                              int64_t* scratch) {
  int64_t* masses = scratch;
  int64_t* v = scratch + plan.frames;
  int64_t* out = v + plan.frames;
  float best = scores[0];
  for (int64_t i = 1; i < plan.frames; ++i) best = scores[i] > best ? scores[i] : best;
  for (int64_t i = 0; i < plan.frames; ++i) masses[i] = mass(scores[i] - best);
  clip_max_fixed(masses, plan.frames, plan.cap, plan.floor, v, out);
  for (int64_t i = 0; i < plan.frames; ++i) weights[i] = static_cast<float>(out[i]);
}

// A frame's time and its number in one integer; the smallest are drawn. Times are positive, so
// their bits order like their values.
CACOVID_HD uint64_t frame_entry(float weight, uint32_t frame, uint32_t rollout, uint32_t item,
                                uint64_t seed) {
  const uint32_t word = draw_block(kOpFrame, 0, frame, rollout, item, seed).word[0];
  return (static_cast<uint64_t>(bit_cast<uint32_t>(neg_log(word) / weight)) << 32) | frame;
}

}  // namespace cacovid
