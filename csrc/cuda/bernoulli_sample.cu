// torch.ops.cacovid.bernoulli_sample on CUDA devices: one launch for up to 64 videos.
#include <algorithm>

#include "../common/plans.h"
#include "cacovid/bernoulli.h"
#include "launch.h"

namespace cacovid {
namespace {

constexpr int kThreads = 128;
constexpr int64_t kRolloutsOfAThread = 8;
constexpr int64_t kMaxBlocksOfALaunch = 65535;  // of the grid's second dimension

struct CoinVideo {
  int64_t first;  // token of the pack
  int64_t count;
  uint32_t item;
};
using CoinBatch = Batch<CoinVideo, 64>;

// Blocks that the tokens of a video take.
CACOVID_HD int64_t blocks_of(int64_t count) { return (count + 4 * kThreads - 1) / (4 * kThreads); }

// A thread draws four neighbouring tokens of some rollouts; their thresholds are computed once.
__global__ void __launch_bounds__(kThreads)
    masks_kernel(const float* __restrict__ logits, const __grid_constant__ CoinBatch batch,
                 int64_t first_rollout, int64_t rollouts, uint64_t seed, int64_t stride,
                 unsigned char* __restrict__ out) {
  int64_t at = blockIdx.x;
  int v = 0;
  for (; at >= blocks_of(batch.items[v].count); ++v) at -= blocks_of(batch.items[v].count);
  const CoinVideo& video = batch.items[v];
  const int64_t block = at * kThreads + threadIdx.x;
  const int64_t token = 4 * block;
  if (token >= video.count) return;
  uint32_t thresholds[4];
  for (int j = 0; j < 4; ++j) {
    thresholds[j] = 0u;
    if (token + j >= video.count) continue;
    const int64_t place = video.first + token + j;
    check_value(logits[place], place, false, "logits");
    thresholds[j] = keep_threshold(logits[place]);
  }
  const int64_t begin = first_rollout + blockIdx.y * kRolloutsOfAThread;
  const int64_t end = min64(begin + kRolloutsOfAThread, rollouts);
  for (int64_t g = begin; g < end; ++g) {
    const uint32_t bits = keep_bits(thresholds, static_cast<uint32_t>(block),
                                    static_cast<uint32_t>(g), video.item, seed);
    unsigned char* to = out + g * stride + video.first + token;
    if (token + 4 <= video.count && reinterpret_cast<uintptr_t>(to) % 4 == 0) {
      *reinterpret_cast<uint32_t*>(to) = bits;
    } else {
      for (int64_t j = 0; j < 4 && token + j < video.count; ++j) {
        to[j] = static_cast<unsigned char>(bits >> (8 * j) & 1u);
      }
    }
  }
}

Tensor bernoulli_sample_cuda(const Tensor& logits_in, const std::vector<int64_t>& counts,
                             int64_t rollouts, int64_t seed, int64_t offset) {
  const int64_t tokens = count_bernoulli(counts, rollouts);
  const torch::stable::accelerator::DeviceGuard guard(logits_in.get_device_index());
  const cudaStream_t stream = current_stream(logits_in);
  const Tensor logits = contiguous_scores(logits_in, logits_in, tokens, "logits");
  Tensor masks = torch::stable::new_empty(logits, {rollouts, tokens}, ScalarType::Bool);
  unsigned char* out = reinterpret_cast<unsigned char*>(masks.mutable_data_ptr<bool>());
  constexpr int64_t kOnce = kMaxBlocksOfALaunch * kRolloutsOfAThread;
  CoinBatch batch{};
  int64_t first = 0;
  for (size_t begin = 0; begin < counts.size(); begin += CoinBatch::kSize) {
    const size_t videos = std::min<size_t>(CoinBatch::kSize, counts.size() - begin);
    int64_t wide = 0;
    for (size_t v = 0; v < videos; ++v) {
      const int64_t count = counts[begin + v];
      batch.items[v] =
          CoinVideo{first, count, static_cast<uint32_t>(static_cast<uint64_t>(offset) + begin + v)};
      first += count;
      wide += blocks_of(count);
    }
    for (int64_t g = 0; g < rollouts; g += kOnce) {
      const int64_t now = std::min(kOnce, rollouts - g);
      const dim3 blocks(static_cast<unsigned>(wide),
                        static_cast<unsigned>((now + kRolloutsOfAThread - 1) / kRolloutsOfAThread));
      masks_kernel<<<blocks, kThreads, 0, stream>>>(logits.const_data_ptr<float>(), batch, g,
                                                    rollouts, static_cast<uint64_t>(seed), tokens,
                                                    out);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    }
  }
  return masks;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("bernoulli_sample", TORCH_BOX(&cacovid::bernoulli_sample_cuda));
}
