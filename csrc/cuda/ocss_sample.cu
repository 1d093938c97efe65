// torch.ops.cacovid.ocss_sample on CUDA devices.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/ocss_block.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kTableThreads = 256;
constexpr int kRolloutThreads = 64;
constexpr int64_t kMaxRolloutsOfALaunch = 65535;  // of the grid's second dimension

// Scratch of a video's frames, one after another.
struct Scratch {
  int32_t* order;     // [t, n]
  float* ranked;      // [t, n]
  float* weights;     // [t, n]
  int64_t* integers;  // [t, frame_integers]

  __device__ FrameTables of(int64_t frame, const OcssPlan& plan) const {
    int64_t* mine = integers + frame * frame_integers(plan);
    const int64_t begin = frame * plan.tokens;
    return FrameTables{order + begin, ranked + begin, weights + begin, mine, mine + plan.subspaces};
  }
};

__global__ void __launch_bounds__(kTableThreads)
    tables_kernel(const float* token_scores, int64_t base, OcssPlan plan, Scratch scratch) {
  __shared__ int64_t memory[kTableThreads];
  CudaBlock<kTableThreads> block(memory);
  const int64_t frame = blockIdx.x, begin = base + frame * plan.tokens;
  check_values(token_scores, begin, plan.tokens, false, "token_scores");
  frame_tables_block(block, token_scores + begin, plan, scratch.of(frame, plan));
}

__global__ void __launch_bounds__(kRolloutThreads)
    rollouts_kernel(OcssPlan plan, Scratch scratch, int64_t first_rollout, uint32_t item,
                    uint64_t seed, int64_t base, int64_t stride, int32_t* unsorted, int32_t* out) {
  __shared__ int64_t memory[kRolloutThreads];
  CudaBlock<kRolloutThreads> block(memory);
  const int64_t frame = blockIdx.x, rollout = first_rollout + blockIdx.y;
  const int64_t place = rollout * stride + frame * plan.keep;
  const Stream stream{static_cast<uint32_t>(frame), static_cast<uint32_t>(rollout), item, seed};
  frame_rollout_block(block, scratch.of(frame, plan), plan, stream, base + frame * plan.tokens,
                      unsorted + place, out + place);
}

Tensor ocss_sample_cuda(const Tensor& token_scores, const std::vector<int64_t>& plan_fields,
                        int64_t rollouts, int64_t seed, int64_t offset) {
  const std::vector<OcssPlan> plans = unpack_ocss(plan_fields);
  const OcssSizes sizes = sizes_of(plans, rollouts);
  const torch::stable::accelerator::DeviceGuard guard(token_scores.get_device_index());
  const cudaStream_t stream = current_stream(token_scores);
  const Tensor scores = contiguous_scores(token_scores, token_scores, sizes.tokens, "token_scores");
  const float* z = scores.const_data_ptr<float>();

  int64_t integers = 0;
  for (const OcssPlan& plan : plans) {
    integers = std::max(integers, plan.frames * frame_integers(plan));
  }
  // Videos follow each other on the stream, so they share the scratch.
  Tensor indices = torch::stable::new_empty(scores, {rollouts, sizes.columns}, ScalarType::Int);
  Tensor unsorted = torch::stable::new_empty(scores, {rollouts, sizes.columns}, ScalarType::Int);
  Tensor order = torch::stable::new_empty(scores, {sizes.tokens}, ScalarType::Int);
  Tensor floats = torch::stable::new_empty(scores, {2 * sizes.tokens}, ScalarType::Float);
  Tensor numbers = torch::stable::new_empty(scores, {integers}, ScalarType::Long);
  const Scratch scratch{order.mutable_data_ptr<int32_t>(), floats.mutable_data_ptr<float>(),
                        floats.mutable_data_ptr<float>() + sizes.tokens,
                        numbers.mutable_data_ptr<int64_t>()};
  int32_t* out = indices.mutable_data_ptr<int32_t>();
  int32_t* temporary = unsorted.mutable_data_ptr<int32_t>();
  int64_t base = 0;
  for (size_t v = 0; v < plans.size(); ++v) {
    const OcssPlan& plan = plans[v];
    const unsigned frames = static_cast<unsigned>(plan.frames);
    const uint32_t item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    tables_kernel<<<frames, kTableThreads, 0, stream>>>(z, base, plan, scratch);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    for (int64_t g = 0; g < rollouts; g += kMaxRolloutsOfALaunch) {
      const int64_t now = std::min(kMaxRolloutsOfALaunch, rollouts - g);
      const dim3 blocks(frames, static_cast<unsigned>(now));
      rollouts_kernel<<<blocks, kRolloutThreads, 0, stream>>>(
          plan, scratch, g, item, static_cast<uint64_t>(seed), base, sizes.columns, temporary, out);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
    base += plan.frames * plan.tokens;
    out += plan.frames * plan.keep;
    temporary += plan.frames * plan.keep;
  }
  return indices;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("ocss_sample", TORCH_BOX(&cacovid::ocss_sample_cuda));
}
