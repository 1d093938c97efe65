// torch.ops.cacovid.select_tokens on CUDA devices.
#include "selection.cuh"

namespace cacovid {
namespace {

Tensor select_tokens_cuda(const Tensor& token_scores, const std::optional<Tensor>& frame_scores,
                          const std::vector<int64_t>& plan_fields,
                          const std::vector<double>& clips) {
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  SelectionInputs inputs;
  const Selection s = prepare_selection(token_scores, frame_scores, plan_fields, clips, inputs);
  launch_selection<uint4>(s, inputs.tokens, current_stream(token_scores));
  return inputs.keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("select_tokens", TORCH_BOX(&cacovid::select_tokens_cuda));
}
