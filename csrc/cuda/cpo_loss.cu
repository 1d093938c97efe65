// torch.ops.cacovid.cpo_loss on CUDA devices: loss and gradient in three launches.
#include "cacovid/cpo_loss_block.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kThreads = 256;

// The token part, then the frame part.
struct Parts {
  CpoPart part[2];
  int64_t tiles[2];
};

__global__ void __launch_bounds__(kThreads)
    rollouts_kernel(const __grid_constant__ Parts parts, CpoSettings set) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t first = parts.part[0].rollouts, at = blockIdx.x;
  const bool frames = at >= first;
  cpo_rollout_block(block, parts.part[frames ? 1 : 0], set, frames ? at - first : at);
}

__global__ void __launch_bounds__(kThreads)
    tokens_kernel(const __grid_constant__ Parts parts, CpoSettings set) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t first = parts.tiles[0], at = blockIdx.x;
  const bool frames = at >= first;
  cpo_tokens_block(block, parts.part[frames ? 1 : 0], set, frames ? at - first : at);
}

__global__ void __launch_bounds__(kThreads)
    totals_kernel(const __grid_constant__ Parts parts, float* losses) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  cpo_total_block(block, parts.part[blockIdx.x], parts.tiles[blockIdx.x], losses + blockIdx.x);
}

// A part's inputs, which must live until the launches, and its scratch.
struct PartTensors {
  Tensor scores, old_scores, masks, rewards, words, doubles, gradient;

  CpoPart part(bool balanced, int64_t& tiles) {
    CpoPart p{};
    p.scores = scores.const_data_ptr<float>();
    p.old_scores = old_scores.const_data_ptr<float>();
    p.masks = masks.const_data_ptr<bool>();
    p.rewards = rewards.const_data_ptr<float>();
    p.count = scores.numel();
    p.rollouts = rewards.numel();
    p.balanced = balanced;
    tiles = (p.count + kThreads - 1) / kThreads;
    constexpr int64_t kDoubles = sizeof(RolloutWeights) / sizeof(double);
    words = torch::stable::new_empty(scores, {p.rollouts * p.words_of_a_mask()}, ScalarType::Int);
    doubles = torch::stable::new_empty(scores, {p.rollouts * kDoubles + tiles}, ScalarType::Double);
    gradient = torch::stable::new_empty(scores, {p.count});
    p.words = reinterpret_cast<uint32_t*>(words.mutable_data_ptr<int32_t>());
    p.weights = reinterpret_cast<RolloutWeights*>(doubles.mutable_data_ptr<double>());
    p.pieces = doubles.mutable_data_ptr<double>() + p.rollouts * kDoubles;
    p.gradient = gradient.mutable_data_ptr<float>();
    return p;
  }
};

PartTensors prepare(const char* name, const Tensor& scores, const Tensor& old, const Tensor& masks,
                    const Tensor& rewards) {
  const int64_t n = scores.numel(), rollouts = rewards.numel();
  check_masks(name, masks, rollouts, n);
  PartTensors t;
  t.scores = contiguous_scores(scores, scores, n, name);
  t.old_scores = contiguous_scores(old, scores, n, name);
  t.rewards = contiguous_scores(rewards, scores, rollouts, name);
  if (!masks.is_cuda() || masks.get_device() != scores.get_device()) {
    fail("the ", name, " masks are on another device; all inputs of an op stand on one");
  }
  t.masks = torch::stable::contiguous(masks);
  return t;
}

std::tuple<Tensor, Tensor, Tensor> cpo_loss_cuda(
    const Tensor& token_scores, const Tensor& frame_scores, const Tensor& old_token_scores,
    const Tensor& old_frame_scores, const Tensor& token_masks, const Tensor& frame_masks,
    const Tensor& token_rewards, const Tensor& frame_rewards, double low, double high,
    double kl_weight) {
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  const cudaStream_t stream = current_stream(token_scores);
  PartTensors tokens = prepare("token", token_scores, old_token_scores, token_masks, token_rewards);
  PartTensors frames = prepare("frame", frame_scores, old_frame_scores, frame_masks, frame_rewards);
  Parts parts{};
  parts.part[0] = tokens.part(true, parts.tiles[0]);
  parts.part[1] = frames.part(false, parts.tiles[1]);
  const CpoSettings set{1.0 - low, 1.0 + high, kl_weight};
  Tensor losses = torch::stable::new_empty(tokens.scores, {2});
  const auto blocks = [](int64_t a, int64_t b) { return static_cast<unsigned>(a + b); };
  rollouts_kernel<<<blocks(parts.part[0].rollouts, parts.part[1].rollouts), kThreads, 0, stream>>>(
      parts, set);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  tokens_kernel<<<blocks(parts.tiles[0], parts.tiles[1]), kThreads, 0, stream>>>(parts, set);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  totals_kernel<<<2, kThreads, 0, stream>>>(parts, losses.mutable_data_ptr<float>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {losses, tokens.gradient, frames.gradient};
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("cpo_loss", TORCH_BOX(&cacovid::cpo_loss_cuda));
}
