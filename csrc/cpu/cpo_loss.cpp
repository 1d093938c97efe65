// torch.ops.cacovid.cpo_loss on the CPU: loss and gradient in one reading of the masks.
//
// A token's bit is kept or dropped and a rollout's advantage positive or not: four values per
// token, computed once, of which the masks choose.
#include <algorithm>
#include <cmath>
#include <vector>

#include "../common/checks.h"
#include "lanes.h"

namespace cacovid {
namespace {

constexpr double kAdvantageEpsilon = 1e-4;
constexpr double kWeightEpsilon = 1e-7;
constexpr int64_t kRun = 1024;  // tokens whose sum is taken in float32
static_assert(kRun % kLanes == 0);

// What one bit of a token costs and how its score moves that, each [n, padded].
struct BitTables {
  std::vector<float> low;        // min(rho, clip(rho)), for advantages that are not negative
  std::vector<float> high;       // max(rho, clip(rho)), for negative ones
  std::vector<float> low_slope;  // derivatives with respect to the score
  std::vector<float> high_slope;
  std::vector<float> away;  // the divergence
  std::vector<float> away_slope;

  explicit BitTables(int64_t count)
      : low(count),
        high(count),
        low_slope(count),
        high_slope(count),
        away(count),
        away_slope(count) {}

  // log pi(bit) now and before; slope: d log pi / d score.
  void set(int64_t i, double now, double before, double slope, double least, double most) {
    const double ratio = std::exp(now - before);
    const double clipped = std::min(std::max(ratio, least), most);
    const double moved = ratio * slope;
    low[i] = static_cast<float>(std::min(ratio, clipped));
    high[i] = static_cast<float>(std::max(ratio, clipped));
    low_slope[i] = static_cast<float>(ratio <= most ? moved : 0.0);
    high_slope[i] = static_cast<float>(ratio >= least ? moved : 0.0);
    const double to_half = std::log(0.5) - now;
    away[i] = static_cast<float>(std::exp(to_half) - to_half - 1.0);
    away_slope[i] = static_cast<float>((1.0 - std::exp(to_half)) * slope);
  }
};

// log(sigmoid(x)), and sigmoid(x).
double log_sigmoid(double x) { return std::min(x, 0.0) - std::log1p(std::exp(-std::abs(x))); }

// Sum over a run of kept ? a : b, and how many are kept.
CACOVID_INLINE Lanes wish_of(const bool* mask) {
  unsigned char bytes[kLanes];
  std::memcpy(bytes, mask, kLanes);
  IntLanes wide;
  for (int64_t i = 0; i < kLanes; ++i) wide[i] = -static_cast<int32_t>(bytes[i]);
  return (Lanes)wide;
}

CACOVID_INLINE void sum_body(const bool* mask, const float* kept, const float* dropped,
                             int64_t count, double* kept_sum, double* dropped_sum) {
  *kept_sum = *dropped_sum = 0.0;
  for (int64_t begin = 0; begin < count; begin += kRun) {
    const int64_t end = begin + kRun < count ? begin + kRun : count;
    Lanes a = {}, b = {};
    for (int64_t i = begin; i < end; i += kLanes) {
      const IntLanes wish = (IntLanes)wish_of(mask + i);
      a += (Lanes)(wish & (IntLanes)load(kept + i));
      b += (Lanes)(~wish & (IntLanes)load(dropped + i));
    }
    *kept_sum += sum_of(a);
    *dropped_sum += sum_of(b);
  }
}

// kept[i] += mask ? a : 0, dropped[i] += mask ? 0 : b.
CACOVID_INLINE void spread_body(const bool* mask, float a, float b, int64_t count, float* kept,
                                float* dropped) {
  const IntLanes x = (IntLanes)splat(a), y = (IntLanes)splat(b);
  for (int64_t i = 0; i < count; i += kLanes) {
    const IntLanes wish = (IntLanes)wish_of(mask + i);
    store(kept + i, load(kept + i) + (Lanes)(wish & x));
    store(dropped + i, load(dropped + i) + (Lanes)(~wish & y));
  }
}

CACOVID_DISPATCH(sum_chosen, sum_body,
                 (const bool* mask, const float* kept, const float* dropped, int64_t count,
                  double* kept_sum, double* dropped_sum),
                 (mask, kept, dropped, count, kept_sum, dropped_sum))
CACOVID_DISPATCH(spread, spread_body,
                 (const bool* mask, float a, float b, int64_t count, float* kept, float* dropped),
                 (mask, a, b, count, kept, dropped))

std::vector<double> advantages(const Tensor& rewards, int64_t count) {
  const float* r = rewards.const_data_ptr<float>();
  double mean = 0.0, spread = 0.0;
  for (int64_t g = 0; g < count; ++g) mean += r[g];
  mean /= static_cast<double>(count);
  for (int64_t g = 0; g < count; ++g) spread += (r[g] - mean) * (r[g] - mean);
  spread = count > 1 ? std::sqrt(spread / static_cast<double>(count - 1)) : 0.0;
  std::vector<double> out(count);
  for (int64_t g = 0; g < count; ++g) out[g] = (r[g] - mean) / (spread + kAdvantageEpsilon);
  return out;
}

struct Settings {
  double least;  // 1 - clip low
  double most;   // 1 + clip high
  double kl;
  bool balanced;  // kept and dropped bits weigh alike
};

// One part of the loss; gradient: [n], written.
double part(const char* name, const Tensor& scores_in, const Tensor& old_in, const Tensor& masks_in,
            const Tensor& rewards_in, const Settings& set, float* gradient) {
  const int64_t n = scores_in.numel(), rollouts = rewards_in.numel();
  check_masks(name, masks_in, rollouts, n);
  const Tensor scores = contiguous_scores(scores_in, scores_in, n, name);
  const Tensor old = contiguous_scores(old_in, scores_in, n, name);
  const Tensor rewards = contiguous_scores(rewards_in, scores_in, rollouts, name);
  const Tensor masks = torch::stable::contiguous(masks_in);
  const float* z = scores.const_data_ptr<float>();
  const float* z_old = old.const_data_ptr<float>();
  const bool* bits = masks.const_data_ptr<bool>();

  const int64_t pad = padded(n);
  BitTables kept(pad), dropped(pad);  // zeros beyond n
  torch::stable::parallel_for(0, n, 512, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double x = z[i], before = z_old[i];
      const double share = std::exp(log_sigmoid(x)), rest = std::exp(log_sigmoid(-x));
      kept.set(i, log_sigmoid(x), log_sigmoid(before), rest, set.least, set.most);
      dropped.set(i, log_sigmoid(-x), log_sigmoid(-before), -share, set.least, set.most);
    }
  });

  // What each token's four slopes are multiplied by: sums over the rollouts.
  std::vector<float> up_kept(pad), up_dropped(pad), down_kept(pad), down_dropped(pad);
  std::vector<float> kl_kept(set.kl != 0.0 ? pad : 0), kl_dropped(set.kl != 0.0 ? pad : 0);
  const std::vector<double> advantage = advantages(rewards, rollouts);
  std::vector<char> row_bytes(pad);
  bool* row = reinterpret_cast<bool*>(row_bytes.data());
  double loss = 0.0;
  for (int64_t g = 0; g < rollouts; ++g) {
    std::memcpy(row, bits + g * n, n);  // bits beyond n: dropped, where every table is zero
    int64_t count = 0;
    for (int64_t i = 0; i < n; ++i) count += row_bytes[i];
    const double share = static_cast<double>(count) / static_cast<double>(n);
    const double of_kept = set.balanced ? 1.0 - share : 1.0;
    const double of_dropped = set.balanced ? share : 1.0;
    const double whole = set.balanced
                             ? 2.0 * static_cast<double>(n) * share * (1.0 - share) + kWeightEpsilon
                             : static_cast<double>(n);
    const double scale = 1.0 / (whole * static_cast<double>(rollouts));
    const double a = advantage[g];
    const bool up = a >= 0.0;
    double kept_sum, dropped_sum;
    sum_chosen(row, (up ? kept.low : kept.high).data(), (up ? dropped.low : dropped.high).data(),
               pad, &kept_sum, &dropped_sum);
    loss -= a * (of_kept * kept_sum + of_dropped * dropped_sum) * scale;
    spread(row, static_cast<float>(-a * of_kept * scale),
           static_cast<float>(-a * of_dropped * scale), pad, (up ? up_kept : down_kept).data(),
           (up ? up_dropped : down_dropped).data());
    if (set.kl != 0.0) {
      sum_chosen(row, kept.away.data(), dropped.away.data(), pad, &kept_sum, &dropped_sum);
      loss += set.kl * (of_kept * kept_sum + of_dropped * dropped_sum) * scale;
      spread(row, static_cast<float>(set.kl * of_kept * scale),
             static_cast<float>(set.kl * of_dropped * scale), pad, kl_kept.data(),
             kl_dropped.data());
    }
  }
  for (int64_t i = 0; i < n; ++i) {
    gradient[i] = (up_kept[i] * kept.low_slope[i] + up_dropped[i] * dropped.low_slope[i]) +
                  (down_kept[i] * kept.high_slope[i] + down_dropped[i] * dropped.high_slope[i]);
    if (set.kl != 0.0) {
      gradient[i] += kl_kept[i] * kept.away_slope[i] + kl_dropped[i] * dropped.away_slope[i];
    }
  }
  return loss;
}

std::tuple<Tensor, Tensor, Tensor> cpo_loss_cpu(
    const Tensor& token_scores, const Tensor& frame_scores, const Tensor& old_token_scores,
    const Tensor& old_frame_scores, const Tensor& token_masks, const Tensor& frame_masks,
    const Tensor& token_rewards, const Tensor& frame_rewards, double low, double high,
    double kl_weight) {
  Settings set{1.0 - low, 1.0 + high, kl_weight, true};
  Tensor losses = torch::stable::new_empty(token_scores, {2}, ScalarType::Float);
  Tensor token = torch::stable::new_empty(token_scores, {token_scores.numel()}, ScalarType::Float);
  Tensor frame = torch::stable::new_empty(token_scores, {frame_scores.numel()}, ScalarType::Float);
  float* out = losses.mutable_data_ptr<float>();
  out[0] = static_cast<float>(part("token", token_scores, old_token_scores, token_masks,
                                   token_rewards, set, token.mutable_data_ptr<float>()));
  set.balanced = false;
  out[1] = static_cast<float>(part("frame", frame_scores, old_frame_scores, frame_masks,
                                   frame_rewards, set, frame.mutable_data_ptr<float>()));
  return {losses, token, frame};
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("cpo_loss", TORCH_BOX(&cacovid::cpo_loss_cpu));
}
