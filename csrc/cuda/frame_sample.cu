// torch.ops.cacovid.frame_sample on CUDA devices: two launches, however many videos up to 64.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/frame_sample_block.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kThreads = 256;
constexpr int64_t kMaxRolloutsOfALaunch = 65535;  // of the grid's second dimension

struct FrameVideo {
  FramePlan plan;
  int64_t first;  // frame of the pack
};
using FrameBatch = Batch<FrameVideo, 64>;

__global__ void __launch_bounds__(kThreads)
    weights_kernel(const float* scores, const __grid_constant__ FrameBatch batch, float* weights,
                   int64_t* scratch) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const FrameVideo& video = batch.items[blockIdx.x];
  check_values(scores, video.first, video.plan.frames, false, "frame_scores");
  frame_weights_block(block, scores + video.first, video.plan, weights + video.first,
                      scratch + 3 * video.first);
}

__global__ void __launch_bounds__(kThreads)
    draws_kernel(const float* scores, const float* weights,
                 const __grid_constant__ FrameBatch batch, int64_t first_rollout,
                 uint32_t first_item, uint64_t seed, int64_t frames, uint32_t* keys, bool* mask) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const FrameVideo& video = batch.items[blockIdx.x];
  const int64_t rollout = first_rollout + blockIdx.y, place = rollout * frames + video.first;
  frame_draw_block(block, scores + video.first, weights + video.first, video.plan,
                   static_cast<uint32_t>(rollout), first_item + blockIdx.x, seed, keys + place,
                   mask + place);
}

Tensor frame_sample_cuda(const Tensor& frame_scores, const std::vector<int64_t>& plan_fields,
                         int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<FramePlan> plans = unpack_frames(plan_fields, rollouts);
  int64_t frames = 0;
  for (const FramePlan& plan : plans) frames += plan.frames;
  const torch::stable::accelerator::DeviceGuard guard(frame_scores.get_device_index());
  const cudaStream_t stream = current_stream(frame_scores);
  const Tensor scores = contiguous_scores(frame_scores, frame_scores, frames, "frame_scores");
  const float* z = scores.const_data_ptr<float>();

  Tensor mask = torch::stable::new_empty(scores, {rollouts, frames}, ScalarType::Bool);
  Tensor keys = torch::stable::new_empty(scores, {rollouts, frames}, ScalarType::Int);
  Tensor weights = torch::stable::new_empty(scores, {frames}, ScalarType::Float);
  Tensor scratch = torch::stable::new_empty(scores, {3 * frames}, ScalarType::Long);
  uint32_t* words = reinterpret_cast<uint32_t*>(keys.mutable_data_ptr<int32_t>());
  FrameBatch batch{};
  int64_t first = 0;
  for (size_t begin = 0; begin < plans.size(); begin += FrameBatch::kSize) {
    const size_t videos = std::min<size_t>(FrameBatch::kSize, plans.size() - begin);
    for (size_t v = 0; v < videos; ++v) {
      batch.items[v] = FrameVideo{plans[begin + v], first};
      first += plans[begin + v].frames;
    }
    weights_kernel<<<static_cast<unsigned>(videos), kThreads, 0, stream>>>(
        z, batch, weights.mutable_data_ptr<float>(), scratch.mutable_data_ptr<int64_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    const uint32_t item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + begin);
    for (int64_t g = 0; g < rollouts; g += kMaxRolloutsOfALaunch) {
      const dim3 blocks(static_cast<unsigned>(videos),
                        static_cast<unsigned>(std::min(kMaxRolloutsOfALaunch, rollouts - g)));
      draws_kernel<<<blocks, kThreads, 0, stream>>>(z, weights.const_data_ptr<float>(), batch, g,
                                                    item, static_cast<uint64_t>(seed), frames,
                                                    words, mask.mutable_data_ptr<bool>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
  return mask;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("frame_sample", TORCH_BOX(&cacovid::frame_sample_cuda));
}
