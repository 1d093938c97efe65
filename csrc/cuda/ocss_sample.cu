// torch.ops.cacovid.ocss_sample on CUDA devices: one launch for all frames of up to 32 videos.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/ocss_block.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr int64_t kMaxRolloutsOfALaunch = 65535;  // of the grid's second dimension

struct OcssVideo {
  OcssPlan plan;
  int64_t first_token;
  int64_t first_column;
  uint32_t item;
};
using OcssBatch = Batch<OcssVideo, 32>;

struct Draws {
  const float* token_scores;
  uint64_t seed;
  int64_t rollouts;
  int64_t columns;  // of all videos
  int32_t* out;     // [rollouts, columns]

  // Where the kept tokens of a frame's rollout stand.
  __device__ int64_t place(const OcssVideo& video, int64_t frame, int64_t rollout) const {
    return rollout * columns + video.first_column + frame * video.plan.keep;
  }

  template <class Block>
  __device__ void rollout(Block& block, const OcssVideo& video, int64_t frame, int64_t number,
                          const FrameTables& tables, int32_t* unsorted) const {
    const Stream stream{static_cast<uint32_t>(frame), static_cast<uint32_t>(number), video.item,
                        seed};
    frame_rollout_block(block, tables, video.plan, stream,
                        video.first_token + frame * video.plan.tokens, unsorted,
                        out + place(video, frame, number));
  }
};

// Tables of `frames` frames, one after another: integers, and behind them floats and indices.
CACOVID_HD FrameTables tables_at(int64_t* memory, int64_t frame, int64_t frames,
                                 const OcssPlan& plan) {
  int64_t* integers = memory + frame * frame_integers(plan);
  int32_t* order = reinterpret_cast<int32_t*>(memory + frames * frame_integers(plan));
  float* floats = reinterpret_cast<float*>(order + frames * plan.tokens);
  const int64_t begin = frame * plan.tokens;
  return FrameTables{order + begin, floats + begin, floats + frames * plan.tokens + begin, integers,
                     integers + plan.subspaces};
}

CACOVID_HD int64_t table_bytes(const OcssPlan& plan) {
  return 8 * frame_integers(plan) + 12 * plan.tokens;
}

// A block works out its frame's tables, in shared memory, and then every warp draws rollouts of its
// own. Blocks that share a frame work out the same: a second launch takes longer.
__global__ void __launch_bounds__(kThreads)
    frames_kernel(const __grid_constant__ OcssBatch batch, const __grid_constant__ Draws draws) {
  extern __shared__ int64_t scratch[];  // tables, kept tokens of each warp
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  int64_t frame = blockIdx.x;
  const OcssVideo& video = batch.items[number_of_video(batch, frame)];
  const OcssPlan& plan = video.plan;
  const int64_t begin = video.first_token + frame * plan.tokens;
  check_values(draws.token_scores, begin, plan.tokens, false, "token_scores");
  const FrameTables tables = tables_at(scratch, 0, 1, plan);
  frame_tables_block(block, draws.token_scores + begin, plan, tables);
  block.sync();
  const int number = static_cast<int>(threadIdx.x / 32);
  CudaWarp warp(memory + 32 * number);
  int32_t* unsorted = reinterpret_cast<int32_t*>(tables.weights + plan.tokens);
  for (int64_t g = blockIdx.y * kWarps + number; g < draws.rollouts; g += gridDim.y * kWarps) {
    draws.rollout(warp, video, frame, g, tables, unsorted + number * plan.keep);
    warp.sync();
  }
}

// For videos whose frames do not fit into shared memory: tables once, then the rollouts.
__global__ void __launch_bounds__(kThreads)
    tables_kernel(const __grid_constant__ OcssVideo video, const float* token_scores,
                  int64_t* tables) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t frame = blockIdx.x, begin = video.first_token + frame * video.plan.tokens;
  check_values(token_scores, begin, video.plan.tokens, false, "token_scores");
  frame_tables_block(block, token_scores + begin, video.plan,
                     tables_at(tables, frame, video.plan.frames, video.plan));
}

__global__ void __launch_bounds__(kThreads)
    rollouts_kernel(const __grid_constant__ OcssVideo video, const __grid_constant__ Draws draws,
                    int64_t first_rollout, int64_t* tables, int32_t* unsorted) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  const int64_t frame = blockIdx.x, number = first_rollout + blockIdx.y;
  const int64_t own = (number * video.plan.frames + frame) * video.plan.keep;
  draws.rollout(block, video, frame, number,
                tables_at(tables, frame, video.plan.frames, video.plan), unsorted + own);
}

void launch_large(const OcssVideo& video, const Draws& draws, const Tensor& like,
                  cudaStream_t stream) {
  const OcssPlan& plan = video.plan;
  const unsigned frames = static_cast<unsigned>(plan.frames);
  const int64_t words = plan.frames * ((table_bytes(plan) + 7) / 8);
  Tensor tables = torch::stable::new_empty(like, {words}, ScalarType::Long);
  Tensor unsorted =
      torch::stable::new_empty(like, {draws.rollouts * plan.frames * plan.keep}, ScalarType::Int);
  int64_t* memory = tables.mutable_data_ptr<int64_t>();
  tables_kernel<<<frames, kThreads, 0, stream>>>(video, draws.token_scores, memory);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  for (int64_t g = 0; g < draws.rollouts; g += kMaxRolloutsOfALaunch) {
    const dim3 blocks(frames,
                      static_cast<unsigned>(std::min(kMaxRolloutsOfALaunch, draws.rollouts - g)));
    rollouts_kernel<<<blocks, kThreads, 0, stream>>>(video, draws, g, memory,
                                                     unsorted.mutable_data_ptr<int32_t>());
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
}

Tensor ocss_sample_cuda(const Tensor& token_scores, const std::vector<int64_t>& plan_fields,
                        int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<OcssPlan> plans = unpack_ocss(plan_fields);
  const OcssSizes sizes = sizes_of(plans, rollouts);
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  const cudaStream_t stream = current_stream(token_scores);
  const Tensor scores = contiguous_scores(token_scores, token_scores, sizes.tokens, "token_scores");
  Tensor indices = torch::stable::new_empty(scores, {rollouts, sizes.columns}, ScalarType::Int);
  const Draws draws{scores.const_data_ptr<float>(), static_cast<uint64_t>(seed), rollouts,
                    sizes.columns, indices.mutable_data_ptr<int32_t>()};

  OcssBatch batch{};
  int count = 0;
  int64_t frames = 0, largest = 0;  // of the batch; bytes
  const auto launch_batch = [&] {
    if (count == 0) return;
    const int64_t turns = (rollouts + kWarps - 1) / kWarps;
    const int64_t splits =
        std::clamp<int64_t>(kWantedBlocks / frames, 1, std::min(turns, kWantedBlocks));
    const dim3 blocks(static_cast<unsigned>(frames), static_cast<unsigned>(splits));
    frames_kernel<<<blocks, kThreads, largest, stream>>>(batch, draws);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    count = 0;
    frames = largest = 0;
  };
  OcssVideo video{};
  for (size_t v = 0; v < plans.size(); ++v) {
    video.plan = plans[v];
    video.item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    const int64_t bytes = table_bytes(video.plan) + 4 * kWarps * video.plan.keep;
    if (bytes > kSharedOfALaunch) {
      launch_large(video, draws, scores, stream);
    } else {
      if (count == OcssBatch::kSize) launch_batch();
      batch.items[count++] = video;
      frames += video.plan.frames;
      largest = std::max(largest, bytes);
    }
    video.first_token += video.plan.frames * video.plan.tokens;
    video.first_column += video.plan.frames * video.plan.keep;
  }
  launch_batch();
  return indices;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("ocss_sample", TORCH_BOX(&cacovid::ocss_sample_cuda));
}
