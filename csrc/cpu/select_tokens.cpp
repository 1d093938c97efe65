// torch.ops.cacovid.select_tokens on the CPU.
#include <algorithm>
#include <functional>

#include "../common/plans.h"
#include "cacovid/select.h"
#include "lanes.h"
#include "selection.h"
#include "values.h"

namespace cacovid {
namespace {

constexpr int64_t kFramesPerTask = 8;

// One token for each of the `budget` best frames (budget < frames).
void best_frames(const float* scores, const SelectPlan& plan, int64_t* quotas) {
  std::vector<uint64_t> keys(plan.frames);
  for (int64_t i = 0; i < plan.frames; ++i) {
    keys[i] = packed_key(scores == nullptr ? 0.0f : scores[i], static_cast<uint32_t>(i));
    quotas[i] = 0;
  }
  std::nth_element(keys.begin(), keys.begin() + plan.budget, keys.end(), std::greater<>());
  for (int64_t i = 0; i < plan.budget; ++i) quotas[packed_index(keys[i])] = 1;
}

// How many of `count` keys (whole lanes) are at least `least`.
CACOVID_INLINE int64_t count_body(const uint32_t* keys, int64_t count, uint32_t least) {
  WordLanes found = {};
  const WordLanes limit = WordLanes{} + least;
  for (int64_t i = 0; i < count; i += kLanes) {
    WordLanes key;
    std::memcpy(&key, keys + i, sizeof(key));
    found -= (WordLanes)(key >= limit);  // true is all ones, minus one
  }
  int64_t sum = 0;
  for (int64_t i = 0; i < kLanes; ++i) sum += found[i];
  return sum;
}

// Marks the `quota` best of `count` tokens, 0 < quota < count, ties to the lowest index.
//
// The least key that is kept is found bit by bit; a count goes over the keys sixteen at a time.
// keys: scratch, `count` padded to whole lanes.
CACOVID_INLINE void mark_body(const float* scores, int64_t count, int64_t quota, uint32_t* keys,
                              uint8_t* mask) {
  const int64_t pad = padded(count);
  std::memset(keys + pad - kLanes, 0, kLanes * sizeof(uint32_t));  // below every score's key
  for (int64_t i = 0; i < count; ++i) keys[i] = sort_key(scores[i]);
  uint32_t least = 0;
  int64_t kept = pad;
  for (uint32_t bit = 0x80000000u; bit != 0 && kept != quota; bit >>= 1) {
    const int64_t found = count_body(keys, pad, least | bit);
    if (found >= quota) {
      least |= bit;
      kept = found;
    }
  }
  if (kept == quota) {
    for (int64_t i = 0; i < count; ++i) mask[i] = keys[i] >= least ? 1 : 0;
    return;
  }
  int64_t ties = quota;  // that are kept
  for (int64_t i = 0; i < count; ++i) ties -= keys[i] > least ? 1 : 0;
  for (int64_t i = 0; i < count; ++i) {
    const bool tie = keys[i] == least && ties > 0;
    ties -= tie ? 1 : 0;
    mask[i] = keys[i] > least || tie ? 1 : 0;
  }
}

CACOVID_DISPATCH(mark_some, mark_body,
                 (const float* scores, int64_t count, int64_t quota, uint32_t* keys, uint8_t* mask),
                 (scores, count, quota, keys, mask))

void mark_best(const float* scores, int64_t count, int64_t quota, std::vector<uint32_t>& keys,
               uint8_t* mask) {
  if (quota == 0 || quota == count) {
    std::fill(mask, mask + count, static_cast<uint8_t>(quota == count));
    return;
  }
  keys.resize(padded(count));
  mark_some(scores, count, quota, keys.data(), mask);
}

// Writes the marked tokens and the uniform share of the others, ascending.
void write_kept(const uint8_t* mask, const SelectPlan& plan, int64_t base, int64_t* keep) {
  const int64_t rest = plan.total - plan.budget, others = plan.frames * plan.tokens - plan.budget;
  int64_t other = 0, taken = 0, written = 0;
  int64_t next = rest > 0 ? uniform_position(0, rest, others) : -1;
  // The place is written whether it counts or not: what is kept cannot be predicted.
  for (int64_t i = 0; written < plan.total; ++i) {
    const int64_t free = mask[i] == 0 ? 1 : 0;
    const bool spread = free != 0 && other == next;
    keep[written] = base + i;
    written += spread ? 1 : 1 - free;
    other += free;
    if (spread) {
      ++taken;
      next = taken < rest ? uniform_position(taken, rest, others) : -1;
    }
  }
}

}  // namespace

Tensor select_tokens_cpu(const Tensor& token_scores, const std::optional<Tensor>& frame_scores,
                         const std::vector<int64_t>& plan_fields,
                         const std::vector<double>& clips) {
  const std::vector<SelectPlan> plans = unpack_select(plan_fields, clips);
  const SelectSizes sizes = sizes_of(plans);
  const Tensor tokens = contiguous_scores(token_scores, token_scores, sizes.tokens, "token_scores");
  const float* z = tokens.const_data_ptr<float>();
  check_values(z, sizes.tokens, "token_scores", true);
  std::optional<Tensor> frames;
  const float* f = nullptr;
  if (frame_scores.has_value()) {
    frames = contiguous_scores(*frame_scores, token_scores, sizes.frames, "frame_scores");
    f = frames->const_data_ptr<float>();
    check_values(f, sizes.frames, "frame_scores", false);
  }

  Tensor keep = torch::stable::new_empty(tokens, {sizes.kept}, ScalarType::Long);
  int64_t* out = keep.mutable_data_ptr<int64_t>();
  std::vector<uint8_t> mask;
  std::vector<int64_t> quotas;
  int64_t base = 0;
  for (const SelectPlan& plan : plans) {
    quotas.resize(plan.frames);
    mask.resize(plan.frames * plan.tokens);
    if (plan.budget < plan.frames) {
      best_frames(f, plan, quotas.data());
    } else {
      frame_quotas(f, plan, quotas.data());
    }
    torch::stable::parallel_for(0, plan.frames, kFramesPerTask, [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> keys;
      for (int64_t i = begin; i < end; ++i) {
        mark_best(z + i * plan.tokens, plan.tokens, quotas[i], keys, mask.data() + i * plan.tokens);
      }
    });
    write_kept(mask.data(), plan, base, out);
    base += plan.frames * plan.tokens;
    z += plan.frames * plan.tokens;
    if (f != nullptr) f += plan.frames;
    out += plan.total;
  }
  return keep;
}

}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("select_tokens", TORCH_BOX(&cacovid::select_tokens_cpu));
}
