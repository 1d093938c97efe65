// The loss of combinatorial policy optimisation with its gradient, by groups of threads; what
// csrc/cpu/cpo_loss.cpp computes, in float64 throughout and in an order that is always the same.
//
// First every rollout's mask is packed to bits and its weights are found, then every token reads
// its bit of every rollout: of what a bit costs, it needs four values alone (kept or dropped, by
// the sign of the advantage), so the sums of the rollouts' weights give loss and slope at once.
#pragma once

#include <cmath>
#include <cstring>

#include "cacovid/block.h"

namespace cacovid {

// What one rollout's bits are multiplied by, the mean over all rollouts included.
struct RolloutWeights {
  double kept;     // minus the advantage, for a kept bit
  double dropped;  // likewise, for a dropped one
  double kl_kept;
  double kl_dropped;
  int64_t up;  // whether the advantage is not negative
};

struct CpoSettings {
  double least;  // 1 - clip low
  double most;   // 1 + clip high
  double kl;
};

struct CpoPart {
  const float* scores;      // [n]
  const float* old_scores;  // [n]
  const bool* masks;        // [G, n]
  const float* rewards;     // [G]
  int64_t count;            // n
  int64_t rollouts;         // G
  bool balanced;            // kept and dropped bits weigh alike
  uint32_t* words;          // [G, words()], the masks as bits
  RolloutWeights* weights;  // [G]
  double* pieces;           // of the loss, one for each tile of tokens
  float* gradient;          // [n]

  CACOVID_HD int64_t words_of_a_mask() const { return (count + 31) / 32; }
};

// The sum over the group, in every thread; always in the same order.
template <class Block>
CACOVID_HD double block_sum_double(Block& block, double value) {
  int64_t* shared = block.shared();
  const int me = block.thread();
  shared[me] = bit_cast<int64_t>(value);
  block.sync();
  for (int half = block.threads() / 2; half > 0; half /= 2) {
    if (me < half) {
      value += bit_cast<double>(shared[me + half]);
      shared[me] = bit_cast<int64_t>(value);
    }
    block.sync();
  }
  const double sum = bit_cast<double>(shared[0]);
  block.sync();
  return sum;
}

// The bits of up to 32 flags, the first lowest; adds to `ones` how many are set.
CACOVID_HD uint32_t packed_flags(const bool* flags, int64_t count, int64_t* ones) {
  uint32_t word = 0;
  if (count == 32 && reinterpret_cast<uintptr_t>(flags) % 8 == 0) {
    // Eight at a time: each is a byte of 0 or 1. One product moves them side by side into the
    // highest byte, another adds them there.
    for (int64_t i = 0; i < 32; i += 8) {
      uint64_t eight;
      memcpy(&eight, flags + i, sizeof(eight));
      word |= static_cast<uint32_t>((eight * 0x0102040810204080ull) >> 56) << i;
      *ones += static_cast<int64_t>((eight * 0x0101010101010101ull) >> 56);
    }
    return word;
  }
  for (int64_t i = 0; i < count; ++i) {
    const uint32_t bit = flags[i] ? 1u : 0u;
    word |= bit << i;
    *ones += bit;
  }
  return word;
}

// Packs the mask of one rollout and finds its weights.
template <class Block>
CACOVID_HD void cpo_rollout_block(Block& block, const CpoPart& part, const CpoSettings& set,
                                  int64_t rollout) {
  constexpr double kAdvantageEpsilon = 1e-4, kWeightEpsilon = 1e-7;
  const int me = block.thread(), step = block.threads();
  const double rollouts = static_cast<double>(part.rollouts), n = static_cast<double>(part.count);
  double mine = 0.0;
  for (int64_t g = me; g < part.rollouts; g += step) mine += part.rewards[g];
  const double mean = block_sum_double(block, mine) / rollouts;
  mine = 0.0;
  for (int64_t g = me; g < part.rollouts; g += step) {
    const double away = part.rewards[g] - mean;
    mine += away * away;
  }
  const double squares = block_sum_double(block, mine);
  const double spread = part.rollouts > 1 ? sqrt(squares / (rollouts - 1.0)) : 0.0;
  const double advantage = (part.rewards[rollout] - mean) / (spread + kAdvantageEpsilon);

  const bool* mask = part.masks + rollout * part.count;
  uint32_t* words = part.words + rollout * part.words_of_a_mask();
  int64_t kept = 0;
  for (int64_t w = me; w < part.words_of_a_mask(); w += step) {
    const int64_t begin = 32 * w, size = min64(32, part.count - begin);
    words[w] = packed_flags(mask + begin, size, &kept);
  }
  const double share = static_cast<double>(block_sum(block, kept)) / n;
  if (me != 0) return;
  const double whole = part.balanced ? 2.0 * n * share * (1.0 - share) + kWeightEpsilon : n;
  const double scale = 1.0 / (whole * rollouts);
  const double of_kept = part.balanced ? (1.0 - share) * scale : scale;
  const double of_dropped = part.balanced ? share * scale : scale;
  part.weights[rollout] =
      RolloutWeights{-advantage * of_kept, -advantage * of_dropped, set.kl * of_kept,
                     set.kl * of_dropped, advantage >= 0.0 ? 1 : 0};
}

CACOVID_HD double log_sigmoid(double x) {
  return (x < 0.0 ? x : 0.0) - log1p(exp(x < 0.0 ? x : -x));
}

// What one bit of a token adds to loss and gradient.
struct BitCost {
  double loss;
  double slope;
};

// now, before: log pi(bit); slope: d log pi / d score. up, down, kl: sums of the rollouts' weights.
CACOVID_HD BitCost bit_cost(double now, double before, double slope, const CpoSettings& set,
                            double up, double down, double kl) {
  const double ratio = exp(now - before);
  const double clipped = ratio < set.least ? set.least : (ratio > set.most ? set.most : ratio);
  const double low = ratio < clipped ? ratio : clipped, high = ratio < clipped ? clipped : ratio;
  const double moved = ratio * slope;
  BitCost cost{up * low + down * high,
               up * (ratio <= set.most ? moved : 0.0) + down * (ratio >= set.least ? moved : 0.0)};
  if (set.kl != 0.0) {
    const double to_half = -0.69314718055994530942 - now;
    cost.loss += kl * (exp(to_half) - to_half - 1.0);
    cost.slope += kl * (1.0 - exp(to_half)) * slope;
  }
  return cost;
}

// One tile of tokens: their gradient, and their piece of the loss.
template <class Block>
CACOVID_HD void cpo_tokens_block(Block& block, const CpoPart& part, const CpoSettings& set,
                                 int64_t tile) {
  const int64_t i = tile * block.threads() + block.thread();
  double loss = 0.0;
  if (i < part.count) {
    double kept_up = 0.0, kept_down = 0.0, kept_kl = 0.0;
    double dropped_up = 0.0, dropped_down = 0.0, dropped_kl = 0.0;
    const uint32_t* words = part.words + i / 32;
    for (int64_t g = 0; g < part.rollouts; ++g) {
      const RolloutWeights& w = part.weights[g];
      if ((words[g * part.words_of_a_mask()] >> (i % 32)) & 1u) {
        (w.up ? kept_up : kept_down) += w.kept;
        kept_kl += w.kl_kept;
      } else {
        (w.up ? dropped_up : dropped_down) += w.dropped;
        dropped_kl += w.kl_dropped;
      }
    }
    const double now = part.scores[i], before = part.old_scores[i];
    const double log_kept = log_sigmoid(now), log_dropped = log_sigmoid(-now);
    const BitCost kept =
        bit_cost(log_kept, log_sigmoid(before), exp(log_dropped), set, kept_up, kept_down, kept_kl);
    const BitCost dropped = bit_cost(log_dropped, log_sigmoid(-before), -exp(log_kept), set,
                                     dropped_up, dropped_down, dropped_kl);
    part.gradient[i] = static_cast<float>(kept.slope + dropped.slope);
    loss = kept.loss + dropped.loss;
  }
  const double sum = block_sum_double(block, loss);
  if (block.thread() == 0) part.pieces[tile] = sum;
}

// The loss of a part from its pieces.
template <class Block>
CACOVID_HD void cpo_total_block(Block& block, const CpoPart& part, int64_t tiles, float* loss) {
  double mine = 0.0;
  for (int64_t t = block.thread(); t < tiles; t += block.threads()) mine += part.pieces[t];
  const double sum = block_sum_double(block, mine);
  if (block.thread() == 0) *loss = static_cast<float>(sum);
}

}  // namespace cacovid
