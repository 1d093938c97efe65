// Runs the cooperative algorithms of csrc/include/cacovid with threads of the host, so that what
// the CUDA kernels compute is compared with the reference without a GPU.
#include <barrier>
#include <functional>
#include <thread>
#include <vector>

#include "cacovid/bernoulli.h"
#include "cacovid/ocss_block.h"
#include "cacovid/select_block.h"

namespace {

struct HostBlock {
  int me;
  int count;
  std::barrier<>* barrier;
  int64_t* memory;

  int thread() const { return me; }
  int threads() const { return count; }
  void sync() { barrier->arrive_and_wait(); }
  int64_t* shared() { return memory; }
};

void run_block(int threads, const std::function<void(HostBlock&)>& body) {
  std::barrier<> barrier(threads);
  std::vector<int64_t> memory(threads);
  std::vector<std::thread> team;
  for (int i = 0; i < threads; ++i) {
    team.emplace_back([&, i] {
      HostBlock block{i, threads, &barrier, memory.data()};
      body(block);
    });
  }
  for (std::thread& thread : team) thread.join();
}

}  // namespace

extern "C" void select_video(int threads, const float* tokens, const float* frames,
                             const int64_t* fields, double clip, int64_t base, int64_t* keep) {
  const cacovid::SelectPlan plan{fields[0], fields[1], fields[2], fields[3],
                                 fields[4], fields[5], clip};
  std::vector<int64_t> quotas(plan.frames), before(plan.frames);
  run_block(threads, [&](HostBlock& block) {
    cacovid::video_quotas_block(block, frames, plan, quotas.data(), before.data());
    for (int64_t i = 0; i < plan.frames; ++i) {
      cacovid::frame_tokens_block(block, tokens + i * plan.tokens, plan, i, quotas[i], before[i],
                                  base, keep);
    }
  });
}

extern "C" void ocss_video(int threads, const float* tokens, const int64_t* fields,
                           int64_t rollouts, uint64_t seed, uint32_t item, int64_t base,
                           int32_t* out, int64_t stride) {
  const cacovid::OcssPlan plan{fields[0], fields[1], fields[2], fields[3], fields[4]};
  std::vector<int32_t> order(plan.tokens), unsorted(plan.keep);
  std::vector<float> ranked(plan.tokens), weights(plan.tokens);
  std::vector<int64_t> integers(cacovid::frame_integers(plan));
  const cacovid::FrameTables tables{order.data(), ranked.data(), weights.data(), integers.data(),
                                    integers.data() + plan.subspaces};
  run_block(threads, [&](HostBlock& block) {
    for (int64_t i = 0; i < plan.frames; ++i) {
      const int64_t first = base + i * plan.tokens;
      cacovid::frame_tables_block(block, tokens + i * plan.tokens, plan, tables);
      block.sync();
      for (int64_t g = 0; g < rollouts; ++g) {
        const cacovid::Stream stream{static_cast<uint32_t>(i), static_cast<uint32_t>(g), item,
                                     seed};
        cacovid::frame_rollout_block(block, tables, plan, stream, first, unsorted.data(),
                                     out + g * stride + i * plan.keep);
        block.sync();
      }
    }
  });
}

// What the threads of the CUDA kernel do, one after another: no thread waits for another there.
extern "C" void bernoulli_video(const float* logits, int64_t count, int64_t rollouts, uint64_t seed,
                                uint32_t item, unsigned char* out, int64_t stride) {
  for (int64_t token = 0; token < count; token += 4) {
    uint32_t thresholds[4];
    for (int j = 0; j < 4; ++j) {
      thresholds[j] = token + j < count ? cacovid::keep_threshold(logits[token + j]) : 0u;
    }
    for (int64_t g = 0; g < rollouts; ++g) {
      const uint32_t bits = cacovid::keep_bits(thresholds, static_cast<uint32_t>(token / 4),
                                               static_cast<uint32_t>(g), item, seed);
      for (int64_t j = 0; j < 4 && token + j < count; ++j) {
        out[g * stride + token + j] = static_cast<unsigned char>(bits >> (8 * j) & 1u);
      }
    }
  }
}
