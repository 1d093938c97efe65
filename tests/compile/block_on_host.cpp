// Runs the cooperative algorithms of csrc/include/cacovid on the host, so that what the CUDA
// kernels compute is compared with the reference without a GPU.
//
// The threads of a group take turns: each runs to its next barrier. The turn goes up and down in
// change, so that a missing barrier shows, one way or the other; so does a barrier that some
// threads do not reach.
#include <ucontext.h>

#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#include "cacovid/bernoulli.h"
#include "cacovid/cpo_loss_block.h"
#include "cacovid/density_peaks_block.h"
#include "cacovid/farthest_point_block.h"
#include "cacovid/frame_sample_block.h"
#include "cacovid/ocss_block.h"
#include "cacovid/select_block.h"

namespace {

struct Team {
  struct Member {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(1 << 16);
    bool done = false;
  };
  ucontext_t scheduler;
  std::vector<Member> members;
  std::vector<int64_t> memory;
  int running = 0;
  std::function<void(int)> body;

  void pause() { swapcontext(&members[running].context, &scheduler); }
};

Team* team = nullptr;

struct HostBlock {
  int me;

  int thread() const { return me; }
  int threads() const { return static_cast<int>(team->members.size()); }
  void sync() { team->pause(); }
  int64_t* shared() { return team->memory.data(); }
  int count(bool yes) { return static_cast<int>(count_before(yes).total); }
  cacovid::Scan count_before(bool yes) {
    shared()[me] = yes ? 1 : 0;
    sync();
    cacovid::Scan scan{0, 0};
    for (int i = 0; i < threads(); ++i) {
      if (i < me) scan.before += shared()[i];
      scan.total += shared()[i];
    }
    sync();
    return scan;
  }
};

void run_member() {
  team->body(team->running);
  team->members[team->running].done = true;
  team->pause();
}

void run_block(int threads, const std::function<void(HostBlock&)>& body) {
  Team own;
  own.members.resize(threads);
  own.memory.resize(threads);
  own.body = [&](int me) {
    HostBlock block{me};
    body(block);
  };
  team = &own;
  for (Team::Member& member : own.members) {
    getcontext(&member.context);
    member.context.uc_stack.ss_sp = member.stack.data();
    member.context.uc_stack.ss_size = member.stack.size();
    makecontext(&member.context, run_member, 0);
  }
  for (bool up = true;; up = !up) {
    int done = 0;
    for (int i = 0; i < threads; ++i) {
      own.running = up ? i : threads - 1 - i;
      swapcontext(&own.scheduler, &own.members[own.running].context);
      done += own.members[own.running].done ? 1 : 0;
    }
    if (done == threads) return;
    if (done > 0) {
      std::fprintf(stderr, "%d of %d threads missed a barrier\n", threads - done, threads);
      std::abort();
    }
  }
}

}  // namespace

// A video of a pack of `tokens` tokens and `kept` kept ones, frame by frame; each frame by `splits`
// groups, which know nothing of each other. rows: [tokens, width] and positions: [axes, tokens],
// each null with a size of 0.
extern "C" void select_video(int threads, int splits, const float* token_scores,
                             const float* frame_scores, const int64_t* fields, double clip,
                             const int64_t* begins, int64_t tokens, int64_t kept,
                             const uint32_t* rows, int64_t width, const int64_t* positions,
                             int64_t axes, int64_t* keep, uint32_t* kept_rows,
                             int64_t* kept_positions) {
  const cacovid::SelectVideo video{
      {fields[0], fields[1], fields[2], fields[3], fields[4], fields[5], clip},
      begins[0],
      begins[1],
      begins[2]};
  const cacovid::KeptRows<uint32_t> to{keep,           rows, kept_rows, width, positions,
                                       kept_positions, axes, tokens,    kept,  width > 1 ? 2 : 1};
  std::vector<int64_t> quotas(video.plan.frames);
  std::vector<int32_t> list(video.plan.tokens);
  run_block(threads, [&](HostBlock& block) {
    for (int64_t i = 0; i < video.plan.frames; ++i) {
      for (int split = 0; split < splits; ++split) {
        // Quotas are worked out by the first frames alone: the others find the same.
        cacovid::select_frame_block(block, token_scores, frame_scores, video, i, split, splits,
                                    i > 1, quotas.data(), list.data(), to);
        block.sync();
      }
    }
  });
}

extern "C" void frame_video(int threads, const float* scores, const int64_t* fields,
                            int64_t rollouts, uint64_t seed, uint32_t item, int64_t stride,
                            bool* mask) {
  const cacovid::FramePlan plan{fields[0], fields[1], fields[2], fields[3]};
  std::vector<float> weights(plan.frames);
  std::vector<int64_t> scratch(3 * plan.frames);
  std::vector<uint32_t> keys(plan.frames);
  run_block(threads, [&](HostBlock& block) {
    cacovid::frame_weights_block(block, scores, plan, weights.data(), scratch.data());
    for (int64_t g = 0; g < rollouts; ++g) {
      cacovid::frame_draw_block(block, scores, weights.data(), plan, static_cast<uint32_t>(g), item,
                                seed, keys.data(), mask + g * stride);
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

namespace {

template <class Element>
void farthest(int threads, int64_t groups, const Element* rows, int64_t count, int64_t width,
              int64_t k, int64_t* keep) {
  cacovid::FarthestPoint<Element> f{};
  f.rows = rows;
  f.count = count;
  f.width = width;
  f.groups = groups;
  std::vector<double> pieces(f.sums() * width), total(width), nearest(count);
  std::vector<cacovid::Best> best(2 * groups);
  f.pieces = pieces.data();
  f.total = total.data();
  f.nearest = nearest.data();
  f.best = best.data();
  for (int64_t column = 0; column < width; ++column) {
    for (int64_t piece = 0; piece < f.sums(); ++piece) cacovid::sum_piece(f, piece, column);
    cacovid::sum_pieces(f, column);
  }
  run_block(threads, [&](HostBlock& block) {
    for (int64_t pass = 0; pass < k; ++pass) {
      for (int64_t g = 0; g < groups; ++g) cacovid::farthest_pass_block(block, f, pass, g);
      block.sync();
    }
    cacovid::farthest_keep_block(block, f, k, keep);
  });
}

template <class Element>
void peaks(int threads, const Element* rows, int64_t count, int64_t width, int64_t near, int64_t k,
           int64_t* keep) {
  std::vector<double> distances(count * count, -1.0), spread(count), largest(count);
  std::vector<cacovid::PeakValue> value(count);
  const std::unique_ptr<bool[]> chosen(new bool[count]);
  const cacovid::DensityPeaks<Element> p{
      rows, count, width, near, distances.data(), spread.data(), largest.data(), value.data()};
  run_block(threads, [&](HostBlock& block) {
    const int64_t columns = threads / cacovid::kDistanceLanes * cacovid::kRowsOfATile;
    for (int64_t i = 0; i * cacovid::kRowsOfATile < count; ++i) {
      for (int64_t j = 0; j * columns < count; ++j) cacovid::distances_block(block, p, i, j);
    }
    block.sync();
    for (int64_t i = 0; i < count; ++i) cacovid::spread_block(block, p, i);
    block.sync();
    for (int64_t i = 0; i < count; ++i) cacovid::value_block(block, p, i);
    block.sync();
    for (int64_t tile = 0; tile * threads < count; ++tile) {
      cacovid::choose_values_block(block, value.data(), count, k, tile, chosen.get());
    }
    block.sync();
    cacovid::compact_block(block, count, [&](int64_t i) { return chosen[i]; }, keep);
  });
}

// bits: 32 for float32, 16 for bfloat16, -16 for float16.
template <class Work>
void with_elements(int bits, const void* rows, const Work& work) {
  if (bits == 32) return work(static_cast<const float*>(rows));
  if (bits == 16) return work(static_cast<const cacovid::Bfloat16*>(rows));
  return work(static_cast<const cacovid::Float16*>(rows));
}

}  // namespace

extern "C" void farthest_rows(int threads, int64_t groups, int bits, const void* rows,
                              int64_t count, int64_t width, int64_t k, int64_t* keep) {
  with_elements(bits, rows,
                [&](const auto* data) { farthest(threads, groups, data, count, width, k, keep); });
}

extern "C" void density_rows(int threads, int bits, const void* rows, int64_t count, int64_t width,
                             int64_t near, int64_t k, int64_t* keep) {
  with_elements(bits, rows,
                [&](const auto* data) { peaks(threads, data, count, width, near, k, keep); });
}

// One part of the loss.
extern "C" void cpo_part(int threads, const float* scores, const float* old_scores,
                         const bool* masks, const float* rewards, int64_t count, int64_t rollouts,
                         bool balanced, const double* settings, float* loss, float* gradient) {
  cacovid::CpoPart part{};
  part.scores = scores;
  part.old_scores = old_scores;
  part.masks = masks;
  part.rewards = rewards;
  part.count = count;
  part.rollouts = rollouts;
  part.balanced = balanced;
  const int64_t tiles = (count + threads - 1) / threads;
  std::vector<uint32_t> words(rollouts * part.words_of_a_mask());
  std::vector<cacovid::RolloutWeights> weights(rollouts);
  std::vector<double> pieces(tiles);
  part.words = words.data();
  part.weights = weights.data();
  part.pieces = pieces.data();
  part.gradient = gradient;
  const cacovid::CpoSettings set{1.0 - settings[0], 1.0 + settings[1], settings[2]};
  run_block(threads, [&](HostBlock& block) {
    for (int64_t g = 0; g < rollouts; ++g) cacovid::cpo_rollout_block(block, part, set, g);
    block.sync();
    for (int64_t t = 0; t < tiles; ++t) cacovid::cpo_tokens_block(block, part, set, t);
    block.sync();
    cacovid::cpo_total_block(block, part, tiles, loss);
  });
}
