// torch.ops.cacovid.select_tokens on the CPU.
#include <algorithm>
#include <functional>

#include "../common/plans.h"
#include "cacovid/select.h"
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

// Marks the `quota` best of `count` tokens.
void mark_best(const float* scores, int64_t count, int64_t quota, std::vector<uint64_t>& keys,
               uint8_t* mask) {
  std::fill(mask, mask + count, static_cast<uint8_t>(quota == count));
  if (quota == 0 || quota == count) return;
  keys.resize(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = packed_key(scores[i], static_cast<uint32_t>(i));
  std::nth_element(keys.begin(), keys.begin() + quota, keys.end(), std::greater<>());
  for (int64_t i = 0; i < quota; ++i) mask[packed_index(keys[i])] = 1;
}

// Writes the marked tokens and the uniform share of the others, ascending.
void write_kept(const uint8_t* mask, const SelectPlan& plan, int64_t base, int64_t* keep) {
  const int64_t count = plan.frames * plan.tokens;
  const int64_t rest = plan.total - plan.budget, others = count - plan.budget;
  int64_t other = 0, taken = 0;
  int64_t next = rest > 0 ? uniform_position(0, rest, others) : -1;
  for (int64_t i = 0; i < count; ++i) {
    bool kept = mask[i] != 0;
    if (!kept) {
      if (other == next) {
        kept = true;
        ++taken;
        next = taken < rest ? uniform_position(taken, rest, others) : -1;
      }
      ++other;
    }
    if (kept) *keep++ = base + i;
  }
}

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
      std::vector<uint64_t> keys;
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

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("select_tokens", TORCH_BOX(&cacovid::select_tokens_cpu));
}
