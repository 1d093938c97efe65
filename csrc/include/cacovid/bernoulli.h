// Bernoulli rollouts; the recipe, normative for every backend, stands in
// cacovid/reference/bernoulli.py.
#pragma once

#include "cacovid/fixed_point.h"
#include "cacovid/philox.h"

namespace cacovid {

constexpr int64_t kMaxBernoulliTokens = int64_t{1} << 26;  // of a video: draws of one stream

// A token is kept where its random word is below this.
CACOVID_HD uint32_t keep_threshold(float logit) {
  const float e = exp_value(logit < 0.0f ? logit : -logit);
  const float q = e / (1.0f + e);
  const int64_t minor = max64(1, static_cast<int64_t>(q * 4294967296.0f));  // 2**32
  return static_cast<uint32_t>(logit < 0.0f ? minor : 4294967296 - minor);
}

// The bits of tokens 4*block ... 4*block + 3 of one rollout, a byte each, the first one lowest.
CACOVID_HD uint32_t keep_bits(const uint32_t* thresholds, uint32_t block, uint32_t rollout,
                              uint32_t item, uint64_t seed) {
  const PhiloxWords words = draw_block(kOpBernoulli, block, 0, rollout, item, seed);
  uint32_t bits = 0;
  for (int j = 0; j < 4; ++j) {
    // A variable of its own: GCC 12 compiles the one expression wrongly under -fsanitize=undefined.
    const bool kept = words.word[j] < thresholds[j];
    bits |= static_cast<uint32_t>(kept) << (8 * j);
  }
  return bits;
}

}  // namespace cacovid
