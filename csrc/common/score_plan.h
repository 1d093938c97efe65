// What `score` is given, checked, as sizes and offsets. The CPU and CUDA forms share it.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "checks.h"

namespace cacovid {

constexpr size_t kScoreFields = 3;

struct ScoreVideo {
  int64_t frames;
  int64_t tokens;       // of a frame
  int64_t fold;         // number of its fold
  int64_t first_token;  // in the pack
  int64_t first_frame;
};

struct ScorePlan {
  std::vector<ScoreVideo> videos;
  std::vector<int64_t> slots;         // H*Q of each fold
  std::vector<int64_t> attending;     // columns of each that the logits are made of
  std::vector<int64_t> first_column;  // of each fold, and their number at the end
  std::vector<int64_t> first_slot;    // likewise
  int64_t tokens = 0;
  int64_t frames = 0;
  int64_t width = 0;           // D
  int64_t features = 0;        // P
  int64_t token_features = 0;  // P_t
  int64_t heads = 0;
  int64_t key_width = 0;  // d; 0: the keys are folded into the columns
  bool inter_frame = false;
  float eps = 0.0f;
  float bound = 0.0f;  // 0: unbounded
};

// Numbers in the flat weights of a head that reads `width` features.
inline int64_t head_size(int64_t width) { return width * width + 3 * width + 1; }

inline void check_matrix(const Tensor& matrix, const Tensor& like, int64_t rows, int64_t columns,
                         const char* name) {
  if (matrix.is_cuda() != like.is_cuda() || matrix.get_device() != like.get_device()) {
    fail(name, " is on another device than video; move them to one");
  }
  if (matrix.scalar_type() != ScalarType::Float) fail(name, " is not float32");
  if (matrix.dim() != 2 || matrix.size(0) != rows || matrix.size(1) != columns) {
    fail(name, " does not fit the plan; expected [", rows, ", ", columns, "]");
  }
}

inline ScorePlan plan_score(const Tensor& video, const Tensor& columns, const Tensor& values,
                            const Tensor& token_head, const Tensor& frame_head,
                            const std::vector<int64_t>& sizes, const std::vector<int64_t>& slots,
                            int64_t token_features, int64_t heads, bool inter_frame, double eps,
                            std::optional<double> score_bound, const std::optional<Tensor>& keys) {
  ScorePlan plan;
  const auto dtype = video.scalar_type();
  if (dtype != ScalarType::Float && dtype != ScalarType::BFloat16 && dtype != ScalarType::Half) {
    fail("video is neither float32, bfloat16 nor float16; convert it");
  }
  if (video.dim() != 2 || values.dim() != 2) fail("video and values must be matrices");
  if (sizes.empty() || sizes.size() % kScoreFields != 0 || slots.empty()) {
    fail("the plan has ", sizes.size(), " integers; expected ", kScoreFields,
         " for each video: frames, tokens, fold");
  }
  plan.width = video.size(1);
  plan.features = values.size(1);
  plan.token_features = token_features;
  plan.heads = heads;
  plan.inter_frame = inter_frame;
  plan.eps = static_cast<float>(eps);
  if (score_bound.has_value()) {
    plan.bound = static_cast<float>(*score_bound);
    if (!(plan.bound > 0.0f)) fail("score_bound is ", *score_bound, "; expected more than 0");
  }
  if (token_features < 1 || token_features >= plan.features || heads < 1) {
    fail("the heads take ", token_features, " of ", plan.features, " features, and there are ",
         heads, " attention heads; expected 1 to P - 1, and at least 1");
  }
  plan.slots = slots;
  if (keys.has_value()) {
    if (keys->dim() != 2 || keys->size(1) < 1) fail("keys must be [S, d]");
    plan.key_width = keys->size(1);
  }
  int64_t column = 0, slot = 0;
  for (const int64_t count : slots) {
    if (count < heads || count % heads != 0) {
      fail("a fold has ", count, " slots for ", heads, " heads; expected a multiple");
    }
    plan.first_column.push_back(column);
    plan.first_slot.push_back(slot);
    plan.attending.push_back(plan.key_width > 0 ? heads * plan.key_width : count);
    column += plan.attending.back() + plan.features * (inter_frame ? 2 : 1);
    slot += count;
  }
  plan.first_column.push_back(column);
  plan.first_slot.push_back(slot);
  const int64_t folds = static_cast<int64_t>(slots.size());
  for (size_t at = 0; at < sizes.size(); at += kScoreFields) {
    const ScoreVideo one{sizes[at], sizes[at + 1], sizes[at + 2], plan.tokens, plan.frames};
    constexpr int64_t kLimit = int64_t{1} << 31;
    if (one.frames < 1 || one.tokens < 1 || one.frames >= kLimit || one.tokens >= kLimit ||
        one.fold < 0 || one.fold >= folds) {
      fail("the sizes of video ", at / kScoreFields, " contradict themselves");
    }
    plan.videos.push_back(one);
    plan.tokens += one.frames * one.tokens;
    plan.frames += one.frames;
  }
  if (video.size(0) != plan.tokens) {
    fail("video has ", video.size(0), " rows; the sizes ask for ", plan.tokens);
  }
  check_matrix(columns, video, column, plan.width, "columns");
  check_matrix(values, video, slot, plan.features, "values");
  if (keys.has_value()) check_matrix(*keys, video, slot, plan.key_width, "keys");
  check_matrix(token_head, video, folds, head_size(token_features), "token_head");
  check_matrix(frame_head, video, folds, head_size(plan.features - token_features), "frame_head");
  return plan;
}

}  // namespace cacovid
