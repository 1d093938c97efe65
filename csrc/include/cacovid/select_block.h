// The selection by groups of threads: the same numbers as select.h, item by item.
#pragma once

#include "cacovid/block.h"
#include "cacovid/select.h"

namespace cacovid {

// Brings quotas [t] to the sum `budget` (level_quotas, by one group).
template <class Block>
CACOVID_HD void level_quotas_block(Block& block, int64_t* quotas, const SelectPlan& plan) {
  const int64_t t = plan.frames;
  const int me = block.thread(), step = block.threads();
  int64_t mine = 0;
  for (int64_t i = me; i < t; i += step) mine += quotas[i];
  const bool lower = block_sum(block, mine) > plan.budget;
  int64_t low = 0, high = lower ? plan.tokens : plan.tokens + 1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    mine = 0;
    for (int64_t i = me; i < t; i += step) {
      mine += lower ? min64(quotas[i], middle) : max64(quotas[i], middle);
    }
    const int64_t sum = block_sum(block, mine);
    if (lower ? sum >= plan.budget : sum > plan.budget) {
      high = middle;
    } else {
      low = middle;
    }
  }
  const int64_t line = lower ? high : low;
  mine = 0;
  for (int64_t i = me; i < t; i += step) {
    quotas[i] = lower ? min64(quotas[i], line) : max64(quotas[i], line);
    mine += quotas[i];
  }
  const int64_t sum = block_sum(block, mine);
  const int64_t rest = lower ? sum - plan.budget : plan.budget - sum;
  int64_t seen = 0;  // frames at the line in earlier tiles
  for (int64_t tile = 0; tile < t; tile += step) {
    const int64_t i = tile + me;
    const bool at_line = i < t && quotas[i] == line;
    const Scan scan = block_scan(block, at_line ? 1 : 0);
    if (at_line && seen + scan.before < rest) quotas[i] += lower ? -1 : 1;
    seen += scan.total;
  }
}

// Quotas of a video's frames, and how many tokens the scores choose before each frame.
//
// scores: [t], or null for equal frames. quotas, before: [t], written.
template <class Block>
CACOVID_HD void video_quotas_block(Block& block, const float* scores, const SelectPlan& plan,
                                   int64_t* quotas, int64_t* before) {
  const int64_t t = plan.frames;
  const int me = block.thread(), step = block.threads();
  if (plan.budget < t) {
    const KeyOf key{scores};
    for (int64_t tile = 0; tile < t; tile += step) {
      const int64_t i = tile + me;
      const int64_t rank = block_rank(block, t, i < t ? key(i) : 0, key, HigherFirst());
      if (i < t) quotas[i] = rank < plan.budget ? 1 : 0;
    }
  } else {
    // Magnitudes and keys are compared as integers, which order like the numbers.
    int64_t magnitude_bits = 0, best_key = 0;
    if (scores != nullptr) {
      for (int64_t i = me; i < t; i += step) {
        magnitude_bits = max64(magnitude_bits, bit_cast<uint32_t>(scores[i]) & 0x7FFFFFFFu);
        best_key = max64(best_key, sort_key(scores[i]));
      }
      magnitude_bits = block_max(block, magnitude_bits);
      best_key = block_max(block, best_key);
    }
    const double magnitude = bit_cast<float>(static_cast<uint32_t>(magnitude_bits));
    const double best = scores == nullptr ? 0.0 : scaled_score(score_of_key(best_key), magnitude);
    int64_t mine = 0;
    for (int64_t i = me; i < t; i += step) {
      quotas[i] = fixed_exp(scores == nullptr ? 0.0 : scaled_score(scores[i], magnitude) - best);
      mine += quotas[i];
    }
    const ShareBounds bounds = share_bounds(block_sum(block, mine), plan);
    mine = 0;
    for (int64_t i = me; i < t; i += step) {
      quotas[i] = min64(max64(quotas[i], bounds.low), bounds.high);
      mine += quotas[i];
    }
    const int64_t share_sum = block_sum(block, mine);
    for (int64_t i = me; i < t; i += step) quotas[i] = wanted_quota(quotas[i], share_sum, plan);
    level_quotas_block(block, quotas, plan);
  }
  int64_t sum = 0;
  for (int64_t tile = 0; tile < t; tile += step) {
    const int64_t i = tile + me;
    const Scan scan = block_scan(block, i < t ? quotas[i] : 0);
    if (i < t) before[i] = sum + scan.before;
    sum += scan.total;
  }
  block.sync();
}

// Writes the kept tokens of one frame.
//
// scores: [n] of frame `frame`. quota, before: of the frame. base: number of the video's first
// token. keep: [total] of the video. A token's place follows in closed form from the quotas and
// its rank, so frames do not wait for each other.
template <class Block>
CACOVID_HD void frame_tokens_block(Block& block, const float* scores, const SelectPlan& plan,
                                   int64_t frame, int64_t quota, int64_t before, int64_t base,
                                   int64_t* keep) {
  const int64_t n = plan.tokens;
  const int64_t rest = plan.total - plan.budget, others = plan.frames * n - plan.budget;
  const KeyOf key{scores};
  int64_t chosen_before = before;  // in earlier frames and tiles
  for (int64_t tile = 0; tile < n; tile += block.threads()) {
    const int64_t i = tile + block.thread();
    const int64_t rank = block_rank(block, n, i < n ? key(i) : 0, key, HigherFirst());
    const bool chosen = i < n && rank < quota;
    const Scan scan = block_scan(block, chosen ? 1 : 0);
    if (i < n) {
      const int64_t token = frame * n + i;
      const int64_t mine = chosen_before + scan.before;  // chosen tokens before this one
      const int64_t other = token - mine;                // and the others before it
      const int64_t spread = uniform_before(other, rest, others);
      const bool in_share =
          !chosen && spread < rest && uniform_position(spread, rest, others) == other;
      if (chosen || in_share) keep[mine + spread] = base + token;
    }
    chosen_before += scan.total;
  }
}

}  // namespace cacovid
