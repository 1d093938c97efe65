// torch.ops.cacovid.frame_sample on the CPU.
#include "cacovid/frame_sample.h"

#include <algorithm>
#include <vector>

#include "../common/plans.h"
#include "ranking.h"
#include "values.h"

namespace cacovid {
namespace {

Tensor frame_sample_cpu(const Tensor& frame_scores, const std::vector<int64_t>& plan_fields,
                        int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<FramePlan> plans = unpack_frames(plan_fields, rollouts);
  int64_t frames = 0;
  for (const FramePlan& plan : plans) frames += plan.frames;
  const Tensor scores = contiguous_scores(frame_scores, frame_scores, frames, "frame_scores");
  const float* z = scores.const_data_ptr<float>();
  check_values(z, frames, "frame_scores", false);

  Tensor mask = torch::stable::new_empty(scores, {rollouts, frames}, ScalarType::Bool);
  bool* out = mask.mutable_data_ptr<bool>();
  std::fill(out, out + rollouts * frames, false);
  int64_t first = 0;
  for (size_t v = 0; v < plans.size(); ++v) {
    const FramePlan& plan = plans[v];
    const uint32_t item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    std::vector<uint32_t> order(plan.frames);
    Ranking(plan.frames).rank(z + first, order.data());
    for (int64_t i = 0; i < plan.choose; ++i) out[first + order[i]] = true;
    std::vector<float> weights(plan.frames);
    std::vector<int64_t> scratch(3 * plan.frames);
    frame_weights(z + first, plan, weights.data(), scratch.data());
    torch::stable::parallel_for(
        1, rollouts, 1 + 4096 / plan.frames, [&](int64_t begin, int64_t end) {
          std::vector<uint64_t> race(plan.frames);
          for (int64_t g = begin; g < end; ++g) {
            for (int64_t i = 0; i < plan.frames; ++i) {
              race[i] = frame_entry(weights[i], static_cast<uint32_t>(i), static_cast<uint32_t>(g),
                                    item, static_cast<uint64_t>(seed));
            }
            keep_smallest(race.data(), plan.frames, plan.choose);
            for (int64_t i = 0; i < plan.choose; ++i) {
              out[g * frames + first + static_cast<uint32_t>(race[i])] = true;
            }
          }
        });
    first += plan.frames;
  }
  return mask;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("frame_sample", TORCH_BOX(&cacovid::frame_sample_cpu));
}
