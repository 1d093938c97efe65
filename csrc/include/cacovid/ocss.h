// Token rollouts; the recipe, normative for every backend, stands in cacovid/reference/ocss.py.
#pragma once

#include "cacovid/fixed_point.h"
#include "cacovid/philox.h"

namespace cacovid {

// What the sampler needs to know of one video: integers made on the host (reference.ocss_plan).
struct OcssPlan {
  int64_t frames;     // t
  int64_t tokens;     // n, of a frame
  int64_t keep;       // k, kept in each frame
  int64_t subspaces;  // l
  int64_t cap;        // of a sub-space's probability, fixed point

  // First rank of sub-space j; n for j = l.
  CACOVID_HD int64_t start(int64_t j) const {
    return j * (tokens / subspaces) + min64(j, tokens % subspaces);
  }
  CACOVID_HD int64_t longest() const {
    return tokens / subspaces + (tokens % subspaces > 0 ? 1 : 0);
  }
};

// Per frame, item 3: the denominator T_j of sub-space j, from the scores in rank order and the sum
// S of the frame's masses. Writes the members' own masses `w` to `within[a_j ...]`.
CACOVID_HD int64_t subspace_denominator(const float* ranked, const OcssPlan& plan, int64_t j,
                                        int64_t mass_sum, int64_t* within) {
  const int64_t begin = plan.start(j), end = plan.start(j + 1);
  const float best = ranked[begin];
  int64_t sum = 0;
  for (int64_t i = begin; i < end; ++i) {
    within[i] = mass(ranked[i] - best);
    sum += within[i];
  }
  const float scaled = bit_cast<float>(0x322BCC77u) * static_cast<float>(mass_sum);  // 1e-8
  float vanishing = scaled / exp_value(best - ranked[0]);
  if (!(vanishing < 1099511627776.0f)) vanishing = 1099511627776.0f;  // 2**40
  return sum + static_cast<int64_t>(vanishing);
}

// Per frame, item 3: the integer weight of a member, rounded to float32.
CACOVID_HD float member_weight(int64_t within, int64_t denominator, const OcssPlan& plan) {
  const int64_t scaled = within * (2 * (plan.tokens / plan.subspaces));
  return static_cast<float>(min64(max64(scaled, denominator), 4 * denominator));
}

// Per frame, items 1 to 3, from the scores in rank order.
//
// prefix: [l], the running sums C_j. weights: [n], of the token at each rank. scratch: [n + 2*l].
CACOVID_HD void frame_tables(const float* ranked, const OcssPlan& plan, int64_t* prefix,
                             float* weights, int64_t* scratch) {
  int64_t* within = scratch;
  int64_t* masses = scratch + plan.tokens;
  int64_t* v = masses + plan.subspaces;
  int64_t total = 0;
  for (int64_t j = 0; j < plan.subspaces; ++j) {
    int64_t sum = 0;
    for (int64_t i = plan.start(j); i < plan.start(j + 1); ++i) sum += mass(ranked[i] - ranked[0]);
    masses[j] = sum;
    total += sum;
  }
  clip_max_fixed(masses, plan.subspaces, plan.cap, fixed_floor(plan.subspaces), v, prefix);
  for (int64_t j = 1; j < plan.subspaces; ++j) prefix[j] += prefix[j - 1];
  for (int64_t j = 0; j < plan.subspaces; ++j) {
    const int64_t denominator = subspace_denominator(ranked, plan, j, total, within);
    for (int64_t i = plan.start(j); i < plan.start(j + 1); ++i) {
      weights[i] = member_weight(within[i], denominator, plan);
    }
  }
}

// Rollout, item 1: the sub-space that the word chooses.
CACOVID_HD int64_t chosen_subspace(const int64_t* prefix, int64_t subspaces, uint32_t word) {
  // prefix stays below 2**31 for 32,767 sub-spaces, so the product fits.
  const int64_t target = static_cast<int64_t>(
      (static_cast<uint64_t>(word) * static_cast<uint64_t>(prefix[subspaces - 1])) >> 32);
  int64_t low = 0, high = subspaces - 1;  // the answer lies in [low, high]
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (target < prefix[middle]) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

// Rollout, item 2: a member's time and its number in one integer; the smallest are kept. Times are
// positive, so their bits order like their values.
CACOVID_HD uint64_t race_entry(float time, float weight, uint32_t member) {
  return (static_cast<uint64_t>(bit_cast<uint32_t>(time / weight)) << 32) | member;
}

CACOVID_HD uint64_t race_entry(uint32_t word, float weight, uint32_t member) {
  return race_entry(neg_log(word), weight, member);
}

}  // namespace cacovid
