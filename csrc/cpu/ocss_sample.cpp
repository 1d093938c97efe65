// torch.ops.cacovid.ocss_sample on the CPU.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/ocss.h"
#include "ranking.h"
#include "sampling_lanes.h"
#include "values.h"

namespace cacovid {
namespace {

CACOVID_DISPATCH(draw_times, draw_times_body,
                 (uint32_t op, int64_t blocks, uint32_t frame, uint32_t rollout, uint32_t item,
                  uint64_t seed, uint32_t* first, float* times),
                 (op, blocks, frame, rollout, item, seed, first, times))

// Draws the rollouts of single frames; the buffers are kept from frame to frame.
class FrameSampler {
 public:
  FrameSampler(const OcssPlan& plan, int64_t rollouts, uint64_t seed, uint32_t item)
      : plan_(plan),
        rollouts_(rollouts),
        seed_(seed),
        item_(item),
        ranking_(plan.tokens),
        order_(plan.tokens),
        ranked_(plan.tokens),
        prefix_(plan.subspaces),
        weights_(plan.tokens),
        scratch_(plan.tokens + 2 * plan.subspaces),
        race_(plan.longest()),
        // Draw 0 chooses the sub-space; the others race where one has enough members.
        blocks_(plan.longest() < plan.keep ? 1 : (plan.longest() + 4) / 4),
        times_(4 * blocks_ * kLanes) {}

  // scores: [n] of frame `frame`; out: its k columns of row 0, rows `stride` apart; base: number
  // of the frame's first token.
  void sample(const float* scores, int64_t frame, int64_t base, int32_t* out, int64_t stride) {
    ranking_.rank(scores, order_.data());
    for (int64_t i = 0; i < plan_.tokens; ++i) ranked_[i] = scores[order_[i]];
    emit_window(0, base, out);
    if (rollouts_ == 1) return;
    frame_tables(ranked_.data(), plan_, prefix_.data(), weights_.data(), scratch_.data());
    for (int64_t group = 1; group < rollouts_; group += kLanes) {
      uint32_t first[kLanes];
      draw_times(kOpOcss, blocks_, static_cast<uint32_t>(frame), static_cast<uint32_t>(group),
                 item_, seed_, first, times_.data());
      const int64_t end = std::min(group + kLanes, rollouts_);
      for (int64_t g = group; g < end; ++g) {
        draw(first[g - group], times_.data() + (g - group), base, out + g * stride);
      }
    }
  }

 private:
  // word: draw 0 of the rollout. times: neg_log of its draws, kLanes apart.
  void draw(uint32_t word, const float* times, int64_t base, int32_t* out) {
    const int64_t j = chosen_subspace(prefix_.data(), plan_.subspaces, word);
    const int64_t begin = plan_.start(j), size = plan_.start(j + 1) - begin;
    if (size < plan_.keep) {
      emit_window(std::min(begin, plan_.tokens - plan_.keep), base, out);
      return;
    }
    for (int64_t i = 0; i < size; ++i) {
      race_[i] = race_entry(times[(i + 1) * kLanes], weights_[begin + i], static_cast<uint32_t>(i));
    }
    keep_smallest(race_.data(), size, plan_.keep);
    for (int64_t i = 0; i < plan_.keep; ++i) {
      const int64_t rank = begin + static_cast<uint32_t>(race_[i]);
      out[i] = static_cast<int32_t>(base + order_[rank]);
    }
    sort_ascending(out, plan_.keep);
  }

  // The ranks [begin, begin + k).
  void emit_window(int64_t begin, int64_t base, int32_t* out) {
    for (int64_t i = 0; i < plan_.keep; ++i) {
      out[i] = static_cast<int32_t>(base + order_[begin + i]);
    }
    sort_ascending(out, plan_.keep);
  }

  const OcssPlan plan_;
  const int64_t rollouts_;
  const uint64_t seed_;
  const uint32_t item_;
  Ranking ranking_;
  std::vector<uint32_t> order_;
  std::vector<float> ranked_;
  std::vector<int64_t> prefix_;
  std::vector<float> weights_;
  std::vector<int64_t> scratch_;
  std::vector<uint64_t> race_;
  const int64_t blocks_;
  std::vector<float> times_;
};

Tensor ocss_sample_cpu(const Tensor& token_scores, const std::vector<int64_t>& plan_fields,
                       int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<OcssPlan> plans = unpack_ocss(plan_fields);
  const OcssSizes sizes = sizes_of(plans, rollouts);
  const Tensor scores = contiguous_scores(token_scores, token_scores, sizes.tokens, "token_scores");
  const float* z = scores.const_data_ptr<float>();
  check_values(z, sizes.tokens, "token_scores", false);

  Tensor indices = torch::stable::new_empty(scores, {rollouts, sizes.columns}, ScalarType::Int);
  int32_t* out = indices.mutable_data_ptr<int32_t>();
  int64_t base = 0;
  for (size_t v = 0; v < plans.size(); ++v) {
    const OcssPlan& plan = plans[v];
    const uint32_t item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    torch::stable::parallel_for(0, plan.frames, 1, [&](int64_t begin, int64_t end) {
      FrameSampler sampler(plan, rollouts, static_cast<uint64_t>(seed), item);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t first = base + i * plan.tokens;
        sampler.sample(z + first, i, first, out + i * plan.keep, sizes.columns);
      }
    });
    base += plan.frames * plan.tokens;
    out += plan.frames * plan.keep;
  }
  return indices;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("ocss_sample", TORCH_BOX(&cacovid::ocss_sample_cpu));
}
