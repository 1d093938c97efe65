// torch.ops.cacovid.frame_sample on CUDA devices: one launch for up to 64 videos.
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
  uint32_t item;
};
using FrameBatch = Batch<FrameVideo, 64>;

struct Draws {
  const float* scores;
  uint64_t seed;
  int64_t rollouts;
  int64_t frames;  // of all videos
  bool* mask;      // [rollouts, frames]

  template <class Block>
  __device__ void rollout(Block& block, const FrameVideo& video, int64_t number,
                          const float* weights, uint32_t* keys) const {
    frame_draw_block(block, scores + video.first, weights, video.plan,
                     static_cast<uint32_t>(number), video.item, seed, keys,
                     mask + number * frames + video.first);
  }
};

// Of a video: what its weights are made of, which becomes the keys of a rollout, and the weights.
CACOVID_HD int64_t scratch_bytes(int64_t frames) { return 28 * frames; }

// A block works out its video's weights, in shared memory, and draws rollouts of its own. Blocks
// that share a video work out the same: a second launch takes longer.
__global__ void __launch_bounds__(kThreads)
    videos_kernel(const __grid_constant__ FrameBatch batch, const __grid_constant__ Draws draws) {
  extern __shared__ int64_t scratch[];
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const FrameVideo& video = batch.items[blockIdx.x];
  check_values(draws.scores, video.first, video.plan.frames, false, "frame_scores");
  float* weights = reinterpret_cast<float*>(scratch + 3 * video.plan.frames);
  frame_weights_block(block, draws.scores + video.first, video.plan, weights, scratch);
  block.sync();
  for (int64_t g = blockIdx.y; g < draws.rollouts; g += gridDim.y) {
    draws.rollout(block, video, g, weights, reinterpret_cast<uint32_t*>(scratch));
    block.sync();
  }
}

// For videos whose frames do not fit into shared memory: weights once, then the rollouts.
__global__ void __launch_bounds__(kThreads)
    weights_kernel(const __grid_constant__ FrameVideo video, const float* scores, float* weights,
                   int64_t* scratch) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  check_values(scores, video.first, video.plan.frames, false, "frame_scores");
  frame_weights_block(block, scores + video.first, video.plan, weights, scratch);
}

__global__ void __launch_bounds__(kThreads)
    draws_kernel(const __grid_constant__ FrameVideo video, const __grid_constant__ Draws draws,
                 int64_t first_rollout, const float* weights, uint32_t* keys) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t number = first_rollout + blockIdx.x;
  draws.rollout(block, video, number, weights, keys + number * video.plan.frames);
}

void launch_large(const FrameVideo& video, const Draws& draws, const Tensor& like,
                  cudaStream_t stream) {
  const int64_t frames = video.plan.frames;
  Tensor scratch = torch::stable::new_empty(like, {3 * frames}, ScalarType::Long);
  Tensor weights = torch::stable::new_empty(like, {frames}, ScalarType::Float);
  Tensor keys = torch::stable::new_empty(like, {draws.rollouts * frames}, ScalarType::Int);
  weights_kernel<<<1, kThreads, 0, stream>>>(video, draws.scores, weights.mutable_data_ptr<float>(),
                                             scratch.mutable_data_ptr<int64_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  for (int64_t g = 0; g < draws.rollouts; g += kMaxRolloutsOfALaunch) {
    const int64_t now = std::min(kMaxRolloutsOfALaunch, draws.rollouts - g);
    draws_kernel<<<static_cast<unsigned>(now), kThreads, 0, stream>>>(
        video, draws, g, weights.const_data_ptr<float>(),
        reinterpret_cast<uint32_t*>(keys.mutable_data_ptr<int32_t>()));
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

Tensor frame_sample_cuda(const Tensor& frame_scores, const std::vector<int64_t>& plan_fields,
                         int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<FramePlan> plans = unpack_frames(plan_fields, rollouts);
  int64_t frames = 0;
  for (const FramePlan& plan : plans) frames += plan.frames;
  const torch::stable::accelerator::DeviceGuard guard(frame_scores.get_device_index());
  const cudaStream_t stream = current_stream(frame_scores);
  const Tensor scores = contiguous_scores(frame_scores, frame_scores, frames, "frame_scores");
  Tensor mask = torch::stable::new_empty(scores, {rollouts, frames}, ScalarType::Bool);
  const Draws draws{scores.const_data_ptr<float>(), static_cast<uint64_t>(seed), rollouts, frames,
                    mask.mutable_data_ptr<bool>()};

  FrameBatch batch{};
  int64_t count = 0, longest = 0;  // of the batch
  const auto launch_batch = [&] {
    if (count == 0) return;
    const int64_t splits =
        std::clamp<int64_t>(kWantedBlocks / count, 1, std::min(rollouts, kWantedBlocks));
    const dim3 blocks(static_cast<unsigned>(count), static_cast<unsigned>(splits));
    videos_kernel<<<blocks, kThreads, scratch_bytes(longest), stream>>>(batch, draws);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    count = longest = 0;
  };
  FrameVideo video{};
  for (size_t v = 0; v < plans.size(); ++v) {
    video.plan = plans[v];
    video.item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    if (scratch_bytes(video.plan.frames) > kSharedOfALaunch) {
      launch_large(video, draws, scores, stream);
    } else {
      if (count == FrameBatch::kSize) launch_batch();
      batch.items[count++] = video;
      longest = std::max(longest, video.plan.frames);
    }
    video.first += video.plan.frames;
  }
  launch_batch();
  return mask;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("frame_sample", TORCH_BOX(&cacovid::frame_sample_cuda));
}
