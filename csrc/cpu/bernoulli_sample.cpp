// torch.ops.cacovid.bernoulli_sample on the CPU: sixteen blocks of four tokens at a time.
#include <algorithm>
#include <bit>
#include <vector>

#include "../common/plans.h"
#include "cacovid/bernoulli.h"
#include "sampling_lanes.h"
#include "values.h"

namespace cacovid {
namespace {

constexpr int64_t kGroup = 4 * kLanes;  // tokens of a step
static_assert(std::endian::native == std::endian::little, "bytes of a word are tokens in order");

// One rollout's mask of tokens [0, count).
//
// thresholds: [groups][4][16], of token 64 * group + 4 * lane + word. mask: [count] bytes.
CACOVID_INLINE void rollout_body(const uint32_t* thresholds, int64_t count, uint32_t rollout,
                                 uint32_t item, uint64_t seed, unsigned char* mask) {
  WordLanes lane;
  for (uint32_t i = 0; i < kLanes; ++i) lane[i] = i;
  const WordLanes zero = {};
  for (int64_t begin = 0; begin < count; begin += kGroup) {
    WordLanes words[4];
    const uint32_t block = static_cast<uint32_t>(begin / 4) | (kOpBernoulli << 24);
    philox_lanes(lane + block, zero, zero + rollout, zero + item, seed, words);
    WordLanes bits = {};
    for (int j = 0; j < 4; ++j) {
      WordLanes limit;
      std::memcpy(&limit, thresholds + begin + j * kLanes, sizeof(limit));
      bits |= ((WordLanes)(words[j] < limit) & 1u) << (8 * j);
    }
    const int64_t left = count - begin;
    std::memcpy(mask + begin, &bits, left < kGroup ? left : kGroup);
  }
}

CACOVID_DISPATCH(draw_rollout, rollout_body,
                 (const uint32_t* thresholds, int64_t count, uint32_t rollout, uint32_t item,
                  uint64_t seed, unsigned char* mask),
                 (thresholds, count, rollout, item, seed, mask))

// keep_threshold of every logit, in the order that rollout_body reads.
std::vector<uint32_t> thresholds_of(const float* logits, int64_t count) {
  std::vector<uint32_t> out((count + kGroup - 1) / kGroup * kGroup);
  torch::stable::parallel_for(0, count, 4096, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t inside = i % kGroup;
      out[i - inside + (inside % 4) * kLanes + inside / 4] = keep_threshold(logits[i]);
    }
  });
  return out;
}

Tensor bernoulli_sample_cpu(const Tensor& logits_in, const std::vector<int64_t>& counts,
                            int64_t rollouts, int64_t seed, int64_t offset) {
  const int64_t tokens = count_bernoulli(counts, rollouts);
  const Tensor logits = contiguous_scores(logits_in, logits_in, tokens, "logits");
  const float* z = logits.const_data_ptr<float>();
  check_values(z, tokens, "logits", false);

  Tensor masks = torch::stable::new_empty(logits, {rollouts, tokens}, ScalarType::Bool);
  unsigned char* out = reinterpret_cast<unsigned char*>(masks.mutable_data_ptr<bool>());
  int64_t first = 0;
  for (size_t v = 0; v < counts.size(); ++v) {
    const int64_t count = counts[v];
    const uint32_t item = static_cast<uint32_t>(static_cast<uint64_t>(offset) + v);
    const std::vector<uint32_t> thresholds = thresholds_of(z + first, count);
    torch::stable::parallel_for(0, rollouts, 1 + 16384 / count, [&](int64_t begin, int64_t end) {
      for (int64_t g = begin; g < end; ++g) {
        draw_rollout(thresholds.data(), count, static_cast<uint32_t>(g), item,
                     static_cast<uint64_t>(seed), out + g * tokens + first);
      }
    });
    first += count;
  }
  return masks;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("bernoulli_sample", TORCH_BOX(&cacovid::bernoulli_sample_cpu));
}
