// Quotas and the uniform share; the recipe, normative for every backend, stands in
// cacovid/reference/select_tokens.py.
#pragma once

#include "cacovid/exponential.h"
#include "cacovid/fixed_point.h"

namespace cacovid {

// What the selection needs to know of one video, made on the host (reference.select_plan).
struct SelectPlan {
  int64_t frames;  // t
  int64_t tokens;  // n, of a frame
  int64_t total;   // kept tokens
  int64_t budget;  // those that the scores choose
  int64_t scale;   // what the frame shares are multiplied by
  int64_t cap;     // largest quota before levelling
  double clip;     // largest frame share, in units of 1/t
};

// Quotas, item 1: exp(d) of -6 <= d <= 0 in 32-bit fixed point.
CACOVID_HD int64_t fixed_exp(double d) {
  const DoubleExpParts e = double_exp_parts(d);
  return static_cast<int64_t>(e.p * double_power_of_two(e.k + 32) + 0.5);
}

// Quotas, item 1: E_i of one frame.
CACOVID_HD double scaled_score(float score, double largest_magnitude) {
  const double f = static_cast<double>(score);
  return largest_magnitude > 0.0 ? (3.0 * f) / largest_magnitude : f;
}

// numerator / denominator rounded half to even.
CACOVID_HD int64_t round_half_even(int64_t numerator, int64_t denominator) {
  const int64_t quotient = numerator / denominator;
  const int64_t twice = 2 * (numerator - quotient * denominator);
  const bool up = twice > denominator || (twice == denominator && (quotient & 1) != 0);
  return quotient + (up ? 1 : 0);
}

// Quotas, item 2: the bounds of E_i.
struct ShareBounds {
  int64_t low;
  int64_t high;
};

CACOVID_HD ShareBounds share_bounds(int64_t total, const SelectPlan& plan) {
  const double sum = static_cast<double>(total);
  double high = (sum * plan.clip) / static_cast<double>(plan.frames);
  if (!(high < sum)) high = sum;
  return ShareBounds{total / (2 * plan.frames), max64(1, static_cast<int64_t>(high))};
}

// Quotas, item 3. C_i * scale stays below 2**63 for videos of fewer than 2**31 tokens.
CACOVID_HD int64_t wanted_quota(int64_t share, int64_t share_sum, const SelectPlan& plan) {
  const int64_t rounded = round_half_even(share * plan.scale, share_sum);
  return min64(max64(rounded, 1), plan.cap);
}

// Quotas, item 4, in place: [frames] brought to the sum `budget` by a water line.
CACOVID_HD void level_quotas(int64_t* quotas, const SelectPlan& plan) {
  const int64_t t = plan.frames;
  int64_t sum = 0;
  for (int64_t i = 0; i < t; ++i) sum += quotas[i];
  const bool lower = sum > plan.budget;
  // lower: sum(min(q, high)) >= budget > sum(min(q, low)), the line is `high`;
  // else:  sum(max(q, low)) <= budget and the line is below `high`, it is `low`.
  int64_t low = 0, high = lower ? plan.tokens : plan.tokens + 1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    sum = 0;
    for (int64_t i = 0; i < t; ++i) {
      sum += lower ? min64(quotas[i], middle) : max64(quotas[i], middle);
    }
    if (lower ? sum >= plan.budget : sum > plan.budget) {
      high = middle;
    } else {
      low = middle;
    }
  }
  const int64_t line = lower ? high : low;
  sum = 0;
  for (int64_t i = 0; i < t; ++i) {
    quotas[i] = lower ? min64(quotas[i], line) : max64(quotas[i], line);
    sum += quotas[i];
  }
  int64_t rest = lower ? sum - plan.budget : plan.budget - sum;
  for (int64_t i = 0; i < t && rest > 0; ++i) {
    if (quotas[i] == line) {
      quotas[i] += lower ? -1 : 1;
      --rest;
    }
  }
}

// Quotas, items 1 to 4 (budget >= frames), from the video's frame scores; null counts all as equal.
CACOVID_HD void frame_quotas(const float* scores, const SelectPlan& plan, int64_t* quotas) {
  const int64_t t = plan.frames;
  double magnitude = 0.0, best = 0.0;
  if (scores != nullptr) {
    for (int64_t i = 0; i < t; ++i) {
      const double a = static_cast<double>(scores[i] < 0.0f ? -scores[i] : scores[i]);
      if (a > magnitude) magnitude = a;
    }
    best = scaled_score(scores[0], magnitude);
    for (int64_t i = 1; i < t; ++i) {
      const double g = scaled_score(scores[i], magnitude);
      if (g > best) best = g;
    }
  }
  int64_t total = 0;
  for (int64_t i = 0; i < t; ++i) {
    quotas[i] = fixed_exp(scores == nullptr ? 0.0 : scaled_score(scores[i], magnitude) - best);
    total += quotas[i];
  }
  const ShareBounds bounds = share_bounds(total, plan);
  int64_t share_sum = 0;
  for (int64_t i = 0; i < t; ++i) {
    quotas[i] = min64(max64(quotas[i], bounds.low), bounds.high);
    share_sum += quotas[i];
  }
  for (int64_t i = 0; i < t; ++i) quotas[i] = wanted_quota(quotas[i], share_sum, plan);
  level_quotas(quotas, plan);
}

// *Tokens*: the position of the j-th of `count` tokens of the uniform share among `others` tokens
// that the scores did not choose.
CACOVID_HD int64_t uniform_position(int64_t j, int64_t count, int64_t others) {
  return count > 1 ? round_half_even(j * (others - 1), count - 1) : 0;
}

// Number of uniform positions below `position`: the least j that is not below it.
//
// R(j) >= p where j*(others-1)/(count-1) exceeds p - 1/2; where it equals p - 1/2, the even one of
// p - 1 and p decides.
CACOVID_HD int64_t uniform_before(int64_t position, int64_t count, int64_t others) {
  if (position <= 0 || count == 0) return 0;
  if (count == 1) return 1;
  const int64_t twice = 2 * (others - 1);  // positive: count <= others
  const int64_t j = ((2 * position - 1) * (count - 1) + (twice - 1)) / twice;
  if (j >= count) return count;
  return j + (uniform_position(j, count, others) < position ? 1 : 0);
}

}  // namespace cacovid
