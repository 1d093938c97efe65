// torch.ops.cacovid.select_and_gather on CUDA devices: selection, rows and positions in one launch.
#include "selection.cuh"

namespace cacovid {
namespace {

std::tuple<Tensor, Tensor, Tensor> select_and_gather_cuda(const Tensor& token_scores,
                                                          const std::optional<Tensor>& frame_scores,
                                                          const Tensor& rows,
                                                          const std::optional<Tensor>& positions,
                                                          const std::vector<int64_t>& plan_fields,
                                                          const std::vector<double>& clips) {
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  SelectionInputs inputs;
  Selection s = prepare_selection(token_scores, frame_scores, plan_fields, clips, inputs);
  check_select_and_gather(token_scores, rows, positions, s.sizes.tokens);
  const Tensor source = torch::stable::contiguous(rows);
  Tensor kept = torch::stable::new_empty(source, {s.sizes.kept, source.size(1)});
  s.rows = source.const_data_ptr();
  s.kept_rows = kept.mutable_data_ptr();
  s.row_bytes = source.size(1) * static_cast<int64_t>(source.element_size());
  Tensor places;
  Tensor kept_places = kept_positions_like(inputs.keep, positions, s.sizes.kept);
  if (positions.has_value()) {
    places = torch::stable::contiguous(*positions);
    s.positions = places.const_data_ptr<int64_t>();
    s.kept_positions = kept_places.mutable_data_ptr<int64_t>();
    s.axes = places.numel() / s.sizes.tokens;
  }
  with_vector(s.rows, s.kept_rows, s.row_bytes, [&](auto vector) {
    launch_selection<decltype(vector)>(s, inputs.tokens, current_stream(token_scores));
  });
  return {inputs.keep, kept, kept_places};
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("select_and_gather", TORCH_BOX(&cacovid::select_and_gather_cuda));
}
