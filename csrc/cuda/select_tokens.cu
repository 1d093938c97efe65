// torch.ops.cacovid.select_tokens on CUDA devices.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/select_block.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kThreads = 256;

// One block for a video: with one block promised to a multiprocessor no register is spilled.
__global__ void __launch_bounds__(kThreads, 1)
    quotas_kernel(const float* frame_scores, SelectPlan plan, int64_t* quotas, int64_t* before) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  video_quotas_block(block, frame_scores, plan, quotas, before);
}

__global__ void __launch_bounds__(kThreads)
    tokens_kernel(const float* token_scores, SelectPlan plan, const int64_t* quotas,
                  const int64_t* before, int64_t base, int64_t* keep) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t frame = blockIdx.x;
  frame_tokens_block(block, token_scores + frame * plan.tokens, plan, frame, quotas[frame],
                     before[frame], base, keep);
}

Tensor select_tokens_cuda(const Tensor& token_scores, const std::optional<Tensor>& frame_scores,
                          const std::vector<int64_t>& plan_fields,
                          const std::vector<double>& clips) {
  const std::vector<SelectPlan> plans = unpack_select(plan_fields, clips);
  const SelectSizes sizes = sizes_of(plans);
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  const cudaStream_t stream = current_stream(token_scores);
  const Tensor tokens = contiguous_scores(token_scores, token_scores, sizes.tokens, "token_scores");
  const float* z = tokens.const_data_ptr<float>();
  check_values(z, sizes.tokens, true, false, stream);
  std::optional<Tensor> frames;
  const float* f = nullptr;
  if (frame_scores.has_value()) {
    frames = contiguous_scores(*frame_scores, token_scores, sizes.frames, "frame_scores");
    f = frames->const_data_ptr<float>();
    check_values(f, sizes.frames, false, true, stream);
  }

  Tensor keep = torch::stable::new_empty(tokens, {sizes.kept}, ScalarType::Long);
  Tensor scratch = torch::stable::new_empty(tokens, {2 * sizes.frames}, ScalarType::Long);
  int64_t* out = keep.mutable_data_ptr<int64_t>();
  int64_t* quotas = scratch.mutable_data_ptr<int64_t>();
  int64_t* before = quotas + sizes.frames;
  int64_t base = 0;
  for (const SelectPlan& plan : plans) {
    quotas_kernel<<<1, kThreads, 0, stream>>>(f, plan, quotas, before);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    tokens_kernel<<<static_cast<unsigned>(plan.frames), kThreads, 0, stream>>>(z, plan, quotas,
                                                                               before, base, out);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    base += plan.frames * plan.tokens;
    z += plan.frames * plan.tokens;
    if (f != nullptr) f += plan.frames;
    quotas += plan.frames;
    before += plan.frames;
    out += plan.total;
  }
  return keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("select_tokens", TORCH_BOX(&cacovid::select_tokens_cuda));
}
