// torch.ops.cacovid.select_and_gather on the CPU: the two after each other; a launch costs nothing.
#include "selection.h"

namespace cacovid {
namespace {

std::tuple<Tensor, Tensor, Tensor> select_and_gather_cpu(const Tensor& token_scores,
                                                         const std::optional<Tensor>& frame_scores,
                                                         const Tensor& rows,
                                                         const std::optional<Tensor>& positions,
                                                         const std::vector<int64_t>& plan_fields,
                                                         const std::vector<double>& clips) {
  check_select_and_gather(token_scores, rows, positions, token_scores.numel());
  const Tensor keep = select_tokens_cpu(token_scores, frame_scores, plan_fields, clips);
  const int64_t kept = keep.numel(), tokens = token_scores.numel();
  Tensor places = kept_positions_like(keep, positions, kept);
  if (positions.has_value()) {
    const Tensor source = torch::stable::contiguous(*positions);
    const int64_t* from = source.const_data_ptr<int64_t>();
    const int64_t* at = keep.const_data_ptr<int64_t>();
    int64_t* to = places.mutable_data_ptr<int64_t>();
    const int64_t axes = source.numel() / tokens;
    for (int64_t a = 0; a < axes; ++a) {
      for (int64_t i = 0; i < kept; ++i) to[a * kept + i] = from[a * tokens + at[i]];
    }
  }
  return {keep, gather_cpu(rows, keep), places};
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("select_and_gather", TORCH_BOX(&cacovid::select_and_gather_cpu));
}
