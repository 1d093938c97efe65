// The selection by groups of threads: the same numbers as select.h, item by item.
#pragma once

#include "cacovid/block.h"
#include "cacovid/select.h"

namespace cacovid {

// Brings quotas [t] to the sum `budget` (level_quotas, by one group).
template <class Block>
CACOVID_HD void level_quotas_block(Block& block, int64_t* quotas, const SelectPlan& plan) {
  const int64_t t = plan.frames;
  const int me = block.thread(), step = block.threads();
  int64_t mine = 0;
  for (int64_t i = me; i < t; i += step) mine += quotas[i];
  const bool lower = block_sum(block, mine) > plan.budget;
  int64_t low = 0, high = lower ? plan.tokens : plan.tokens + 1;
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    mine = 0;
    for (int64_t i = me; i < t; i += step) {
      mine += lower ? min64(quotas[i], middle) : max64(quotas[i], middle);
    }
    const int64_t sum = block_sum(block, mine);
    if (lower ? sum >= plan.budget : sum > plan.budget) {
      high = middle;
    } else {
      low = middle;
    }
  }
  const int64_t line = lower ? high : low;
  mine = 0;
  for (int64_t i = me; i < t; i += step) {
    quotas[i] = lower ? min64(quotas[i], line) : max64(quotas[i], line);
    mine += quotas[i];
  }
  const int64_t sum = block_sum(block, mine);
  const int64_t rest = lower ? sum - plan.budget : plan.budget - sum;
  int64_t seen = 0;  // frames at the line in earlier tiles
  for (int64_t tile = 0; tile < t; tile += step) {
    const int64_t i = tile + me;
    const bool at_line = i < t && quotas[i] == line;
    const Scan scan = block.count_before(at_line);
    if (at_line && seen + scan.before < rest) quotas[i] += lower ? -1 : 1;
    seen += scan.total;
  }
}

// Quotas of a video's frames.
//
// scores: [t], or null for equal frames. quotas: [t], written; seen by the whole group.
template <class Block>
CACOVID_HD void video_quotas_block(Block& block, const float* scores, const SelectPlan& plan,
                                   int64_t* quotas) {
  const int64_t t = plan.frames;
  const int me = block.thread(), step = block.threads();
  if (plan.budget < t) {
    block_choose(block, t, plan.budget, ScoreKey{scores}, [&](int64_t i, bool chosen) {
      if (i < t) quotas[i] = chosen ? 1 : 0;
    });
  } else {
    // Magnitudes and keys are compared as integers, which order like the numbers.
    int64_t magnitude_bits = 0, best_key = 0;
    if (scores != nullptr) {
      for (int64_t i = me; i < t; i += step) {
        magnitude_bits = max64(magnitude_bits, bit_cast<uint32_t>(scores[i]) & 0x7FFFFFFFu);
        best_key = max64(best_key, sort_key(scores[i]));
      }
      magnitude_bits = block_max(block, magnitude_bits);
      best_key = block_max(block, best_key);
    }
    const double magnitude = bit_cast<float>(static_cast<uint32_t>(magnitude_bits));
    const double best = scores == nullptr ? 0.0 : scaled_score(score_of_key(best_key), magnitude);
    int64_t mine = 0;
    for (int64_t i = me; i < t; i += step) {
      quotas[i] = fixed_exp(scores == nullptr ? 0.0 : scaled_score(scores[i], magnitude) - best);
      mine += quotas[i];
    }
    const ShareBounds bounds = share_bounds(block_sum(block, mine), plan);
    mine = 0;
    for (int64_t i = me; i < t; i += step) {
      quotas[i] = min64(max64(quotas[i], bounds.low), bounds.high);
      mine += quotas[i];
    }
    const int64_t share_sum = block_sum(block, mine);
    for (int64_t i = me; i < t; i += step) quotas[i] = wanted_quota(quotas[i], share_sum, plan);
    level_quotas_block(block, quotas, plan);
  }
  block.sync();
}

// Where the kept tokens of a frame stand among those of its video.
struct FramePlaces {
  int64_t first;
  int64_t count;
};

// What precedes a frame follows in closed form from the quotas, so frames do not wait for each
// other. before: tokens that the scores choose in earlier frames.
CACOVID_HD FramePlaces frame_places(const SelectPlan& plan, int64_t frame, int64_t before,
                                    int64_t quota) {
  const int64_t rest = plan.total - plan.budget, others = plan.frames * plan.tokens - plan.budget;
  const int64_t begin = frame * plan.tokens, end = begin + plan.tokens, after = before + quota;
  const int64_t first = before + uniform_before(begin - before, rest, others);
  return FramePlaces{first, after + uniform_before(end - after, rest, others) - first};
}

// The kept tokens of one frame.
//
// scores: [n] of frame `frame`. quota, before: of the frame. list: [n], the frame's kept tokens
// are written to its first entries, ascending.
template <class Block>
CACOVID_HD void frame_tokens_block(Block& block, const float* scores, const SelectPlan& plan,
                                   int64_t frame, int64_t quota, int64_t before, int32_t* list) {
  const int64_t n = plan.tokens;
  const int64_t rest = plan.total - plan.budget, others = plan.frames * n - plan.budget;
  const int64_t first = frame_places(plan, frame, before, quota).first;
  int64_t chosen_before = before;  // in earlier frames and tiles
  block_choose(block, n, quota, ScoreKey{scores}, [&](int64_t i, bool chosen) {
    const Scan scan = block.count_before(chosen);
    if (i < n) {
      const int64_t mine = chosen_before + scan.before;  // chosen tokens before this one
      const int64_t other = frame * n + i - mine;        // and the others before it
      const int64_t spread = uniform_before(other, rest, others);
      const bool in_share =
          !chosen && spread < rest && uniform_position(spread, rest, others) == other;
      if (chosen || in_share) list[mine + spread - first] = static_cast<int32_t>(i);
    }
    chosen_before += scan.total;
  });
  block.sync();
}

// Where a video stands in its pack.
struct SelectVideo {
  SelectPlan plan;
  int64_t first_token;
  int64_t first_frame;
  int64_t first_kept;
};

// What becomes of the kept tokens; rows are counted in elements of type Vector.
template <class Vector>
struct KeptRows {
  int64_t* keep;             // [K]
  const Vector* rows;        // [N, vectors], or null
  Vector* kept_rows;         // [K, vectors]
  int64_t vectors;           // 0 without rows
  const int64_t* positions;  // [axes, N], or null
  int64_t* kept_positions;   // [axes, K]
  int64_t axes;              // 0 without positions
  int64_t tokens;            // N
  int64_t kept;              // K
  int width;                 // threads that copy a row together, a power of two
};

// Writes the kept tokens of one frame with their rows and positions; `splits` groups share the
// work on a frame, this is number `split`.
template <class Block, class Vector>
CACOVID_HD void copy_kept_block(Block& block, const SelectVideo& video, int64_t frame,
                                const FramePlaces& places, const int32_t* list, int split,
                                int splits, const KeptRows<Vector>& to) {
  const int width = to.width, lane = block.thread() % width;
  const int64_t teams = block.threads() / width;
  const int64_t begin = video.first_token + frame * video.plan.tokens;
  for (int64_t j = split * teams + block.thread() / width; j < places.count; j += splits * teams) {
    const int64_t token = begin + list[j], place = video.first_kept + places.first + j;
    if (lane == 0) to.keep[place] = token;
    for (int64_t a = lane; a < to.axes; a += width) {
      to.kept_positions[a * to.kept + place] = to.positions[a * to.tokens + token];
    }
    if (to.vectors == 0) continue;
    const Vector* source = to.rows + token * to.vectors;
    Vector* target = to.kept_rows + place * to.vectors;
    int64_t v = lane;
    for (; v + 3 * width < to.vectors; v += 4 * width) {  // four reads under way before a write
      const Vector a = source[v], b = source[v + width];
      const Vector c = source[v + 2 * width], d = source[v + 3 * width];
      target[v] = a;
      target[v + width] = b;
      target[v + 2 * width] = c;
      target[v + 3 * width] = d;
    }
    for (; v < to.vectors; v += width) target[v] = source[v];
  }
}

// One frame from the scores to the kept rows, with nothing from other groups.
//
// token_scores: [N]. frame_scores: [F], or null. quotas: [t] and list: [n], scratch of the group;
// where `have_quotas`, the quotas stand there already.
template <class Block, class Vector>
CACOVID_HD void select_frame_block(Block& block, const float* token_scores,
                                   const float* frame_scores, const SelectVideo& video,
                                   int64_t frame, int split, int splits, bool have_quotas,
                                   int64_t* quotas, int32_t* list, const KeptRows<Vector>& to) {
  const SelectPlan& plan = video.plan;
  if (!have_quotas) {
    const float* own = frame_scores == nullptr ? nullptr : frame_scores + video.first_frame;
    video_quotas_block(block, own, plan, quotas);
  }
  int64_t mine = 0;
  for (int64_t i = block.thread(); i < frame; i += block.threads()) mine += quotas[i];
  const int64_t before = block_sum(block, mine);
  const float* scores = token_scores + video.first_token + frame * plan.tokens;
  frame_tokens_block(block, scores, plan, frame, quotas[frame], before, list);
  copy_kept_block(block, video, frame, frame_places(plan, frame, before, quotas[frame]), list,
                  split, splits, to);
}

}  // namespace cacovid
