// Quotas and the uniform share; the recipe, normative for every backend, stands in
// cacovid/reference/select_tokens.py.
#pragma once

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
  const int64_t k = static_cast<int64_t>(d * 1.4426950408889634 - 0.5);
  const double whole = static_cast<double>(k);
  const double high = whole * 0.693145751953125;
  const double low = whole * 1.42860682030941723212e-6;
  const double x = (d - high) - low;
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           1.0 / 2.0,
                                           1.0,
                                           1.0};  // 12! down to 0!
  double p = 1.0 / 6227020800.0;                  // 13!
  for (int j = 0; j < 13; ++j) {
    p = p * x;
    p = p + kInverseFactorials[j];
  }
  const double scale = bit_cast<double>(static_cast<uint64_t>(k + 32 + 1023) << 52);
  return static_cast<int64_t>(p * scale + 0.5);
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
CACOVID_HD int64_t uniform_before(int64_t position, int64_t count, int64_t others) {
  int64_t low = 0, high = count;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (uniform_position(middle, count, others) < position) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

}  // namespace cacovid
