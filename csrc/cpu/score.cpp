// torch.ops.cacovid.score on the CPU: a block of rows is multiplied, and everything else is done
// while the block is in cache.
#include <algorithm>
#include <array>
#include <optional>
#include <vector>

#include "../common/score_plan.h"
#include "bfloat16_product.h"
#include "float_product.h"
#include "lanes.h"
#include "one_thread.h"
#include "score_rows.h"

namespace cacovid {
namespace {

// Who multiplies.
enum class Product {
  kFloat,     // our own, in float32
  kBfloat16,  // our own, of pairs of bfloat16
  kTiles,     // the library that PyTorch multiplies with, which knows tiles of bfloat16 (AMX)
};

// Where bfloat16 is multiplied by emulation, float32 is both faster and closer.
Product product_of(ScalarType dtype) {
  if (dtype != ScalarType::BFloat16 || !has_bfloat16_product()) return Product::kFloat;
  return has_bfloat16_tiles() ? Product::kTiles : Product::kBfloat16;
}

// Bytes of `video` that a block reads, and its rows. A block must not depend on the number of
// threads, so that scores do not.
struct BlockLimits {
  int64_t bytes;
  int64_t least;
  int64_t most;
};
constexpr BlockLimits kLargeBlocks{2 << 20, 32, 512};    // a library prepares each product
constexpr BlockLimits kSmallBlocks{256 << 10, 48, 192};  // with its product in a second-level cache

struct FoldTables {
  int64_t slots;
  std::vector<float> values;  // [slots, pad of P]
  HeadTables token;
  HeadTables frame;
  int64_t columns;  // C
  // One of them, by the product.
  std::optional<FloatPanels> floats;
  std::optional<Bfloat16Panels> pairs;
  std::optional<Tensor> matrix;   // [D, C] bfloat16
  std::vector<FloatPanels> keys;  // of each head, unless they are folded
};

Tensor view_of(const void* data, int64_t rows, int64_t columns, ScalarType dtype) {
  const std::array<int64_t, 2> sizes{rows, columns}, strides{columns, 1};
  return torch::stable::from_blob(const_cast<void*>(data), sizes, strides,
                                  torch::stable::Device(torch::headeronly::DeviceType::CPU), dtype);
}

// out = a @ b by the library that PyTorch multiplies with.
void multiply_into(const Tensor& out, const Tensor& a, const Tensor& b) {
  std::array<StableIValue, 3> stack{torch::stable::detail::from(a), torch::stable::detail::from(b),
                                    torch::stable::detail::from(out)};
  TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
  torch::stable::detail::to<Tensor>(stack[0]);  // takes back the reference
}

std::vector<FoldTables> make_tables(const ScorePlan& plan, const Tensor& columns,
                                    const Tensor& values, const Tensor& token_head,
                                    const Tensor& frame_head, const std::optional<Tensor>& keys,
                                    Product product) {
  std::vector<FoldTables> folds;
  const int64_t pad = padded(plan.features), frame_features = plan.features - plan.token_features;
  for (size_t v = 0; v < plan.slots.size(); ++v) {
    const int64_t count = plan.first_column[v + 1] - plan.first_column[v];
    const float* mine = columns.const_data_ptr<float>() + plan.first_column[v] * plan.width;
    FoldTables tables{
        plan.slots[v],
        std::vector<float>(plan.slots[v] * pad),
        HeadTables(token_head.const_data_ptr<float>() + v * head_size(plan.token_features),
                   plan.token_features),
        HeadTables(frame_head.const_data_ptr<float>() + v * head_size(frame_features),
                   frame_features),
        count,
        std::nullopt,
        std::nullopt,
        std::nullopt,
        {}};
    if (product == Product::kFloat) {
      tables.floats.emplace(mine, count, plan.width);
    } else if (product == Product::kBfloat16) {
      tables.pairs.emplace(mine, count, plan.width);
    } else {
      const Tensor own = view_of(mine, count, plan.width, ScalarType::Float);
      tables.matrix = torch::stable::new_empty(own, {plan.width, count}, ScalarType::BFloat16);
      torch::stable::copy_(*tables.matrix, torch::stable::transpose(own, 0, 1));
    }
    const int64_t each = plan.slots[v] / plan.heads;
    for (int64_t h = 0; keys.has_value() && h < plan.heads; ++h) {
      const int64_t first = plan.first_slot[v] + h * each;
      tables.keys.emplace_back(keys->const_data_ptr<float>() + first * plan.key_width, each,
                               plan.key_width);
    }
    const float* from = values.const_data_ptr<float>() + plan.first_slot[v] * plan.features;
    for (int64_t s = 0; s < plan.slots[v]; ++s) {
      std::memcpy(tables.values.data() + s * pad, from + s * plan.features,
                  plan.features * sizeof(float));
    }
    folds.push_back(std::move(tables));
  }
  return folds;
}

struct Block {
  int64_t video;
  int64_t begin;  // row in the pack
  int64_t count;
};

std::vector<Block> cut(const ScorePlan& plan, Product product) {
  const BlockLimits limits = product == Product::kBfloat16 ? kSmallBlocks : kLargeBlocks;
  const int64_t size = product == Product::kFloat ? sizeof(float) : sizeof(Bfloat16);
  const int64_t most = limits.bytes / (plan.width * size) / limits.least * limits.least;
  const int64_t rows = std::clamp(most, limits.least, limits.most);
  std::vector<Block> blocks;
  for (size_t v = 0; v < plan.videos.size(); ++v) {
    const ScoreVideo& video = plan.videos[v];
    const int64_t count = video.frames * video.tokens;
    for (int64_t begin = 0; begin < count; begin += rows) {
      blocks.push_back({static_cast<int64_t>(v), video.first_token + begin,
                        count - begin < rows ? count - begin : rows});
    }
  }
  return blocks;
}

// What a thread keeps between its blocks.
struct Scratch {
  std::vector<float> wide;     // a block's rows in float32
  std::vector<float> factors;  // of its rows
  std::vector<char> columns;   // its product
  std::vector<float> queries;  // of a head
  std::vector<float> logits;   // of a head
  std::vector<float> joined;   // all logits and the other columns
  std::vector<float> rest;
};

// A block's columns with the logits of the slots in the place of the queries, as folded columns
// give them. z: [count, stride]; returns [count, sizes.stride].
const float* with_logits(const ScorePlan& plan, const FoldTables& fold, const float* z,
                         int64_t stride, int64_t count, const RowSizes& sizes, Scratch& s) {
  const int64_t d = plan.key_width, each = fold.slots / plan.heads;
  const int64_t apart = product_stride(each), first = plan.heads * d;
  s.queries.resize(count * d);
  s.logits.resize(count * apart);
  s.joined.resize(count * sizes.stride);
  for (int64_t h = 0; h < plan.heads; ++h) {
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(s.queries.data() + i * d, z + i * stride + h * d, d * sizeof(float));
    }
    float_product(s.queries.data(), count, fold.keys[h], s.logits.data());
    for (int64_t i = 0; i < count; ++i) {
      std::memcpy(s.joined.data() + i * sizes.stride + h * each, s.logits.data() + i * apart,
                  each * sizeof(float));
    }
  }
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(s.joined.data() + i * sizes.stride + fold.slots, z + i * stride + first,
                (fold.columns - first) * sizeof(float));
  }
  return s.joined.data();
}

// Rows in float32: themselves, or a copy.
const float* widened(const void* rows, ScalarType dtype, int64_t count, std::vector<float>& to) {
  if (dtype == ScalarType::Float) return static_cast<const float*>(rows);
  to.resize(count);
  if (dtype == ScalarType::Half) {
    widen_float16(static_cast<const Float16*>(rows), count, to.data());
  } else {
    widen_bfloat16(static_cast<const Bfloat16*>(rows), count, to.data());
  }
  return to.data();
}

// Features of a block of rows: u and difference [count, pad of P].
void block_features(const ScorePlan& plan, const FoldTables& fold, const void* rows, int64_t count,
                    ScalarType dtype, Product product, float* u, float* difference, Scratch& s) {
  const bool keys = plan.key_width > 0;
  RowSizes sizes{fold.columns, fold.slots, plan.heads, plan.features, plan.inter_frame};
  const float* columns = nullptr;
  s.factors.resize(count);
  s.rest.resize(feature_scratch(sizes));
  if (product == Product::kTiles) {
    bfloat16_squares(static_cast<const Bfloat16*>(rows), count, plan.width, s.factors.data());
    factors_of_squares(s.factors.data(), count, plan.width, plan.eps);
    s.columns.resize(count * sizes.stride * sizeof(Bfloat16));
    const Tensor left = view_of(rows, count, plan.width, ScalarType::BFloat16);
    multiply_into(view_of(s.columns.data(), count, sizes.stride, ScalarType::BFloat16), left,
                  *fold.matrix);
    const auto* own = reinterpret_cast<const Bfloat16*>(s.columns.data());
    if (!keys) {
      bfloat16_features(own, s.factors.data(), count, sizes, fold.values.data(), u, difference,
                        s.rest.data());
      return;
    }
    columns = widened(own, ScalarType::BFloat16, count * sizes.stride, s.wide);
  } else {
    sizes.stride = product == Product::kFloat ? product_stride(fold.columns)
                                              : bfloat16_product_stride(fold.columns);
    s.columns.resize(count * sizes.stride * sizeof(float));
    float* out = reinterpret_cast<float*>(s.columns.data());
    if (product == Product::kFloat) {
      const float* own = widened(rows, dtype, count * plan.width, s.wide);
      float_squares(own, count, plan.width, s.factors.data());
      float_product(own, count, *fold.floats, out);
    } else {
      const auto* own = static_cast<const Bfloat16*>(rows);
      bfloat16_squares(own, count, plan.width, s.factors.data());
      bfloat16_product(own, count, *fold.pairs, out);
    }
    factors_of_squares(s.factors.data(), count, plan.width, plan.eps);
    columns = out;
  }
  if (keys) {
    const int64_t stride = sizes.stride;
    sizes.stride = fold.slots + fold.columns - plan.heads * plan.key_width;
    columns = with_logits(plan, fold, columns, stride, count, sizes, s);
  }
  float_features(columns, s.factors.data(), count, sizes, fold.values.data(), u, difference,
                 s.rest.data());
}

// Features of all rows: u and difference [N, pad of P].
void make_features(const ScorePlan& plan, const Tensor& video, const std::vector<FoldTables>& folds,
                   Product product, float* u, float* difference) {
  const ScalarType dtype = video.scalar_type();
  const int64_t size = static_cast<int64_t>(video.element_size()), pad = padded(plan.features);
  const char* data = static_cast<const char*>(video.const_data_ptr());
  const std::vector<Block> blocks = cut(plan, product);
  torch::stable::parallel_for(
      0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t first, int64_t last) {
        const OneThread planned;
        Scratch scratch;
        for (int64_t b = first; b < last; ++b) {
          const Block& block = blocks[b];
          const FoldTables& fold = folds[plan.videos[block.video].fold];
          float* moved = plan.inter_frame ? difference + block.begin * pad : nullptr;
          block_features(plan, fold, data + block.begin * plan.width * size, block.count, dtype,
                         product, u + block.begin * pad, moved, scratch);
        }
      });
}

std::tuple<Tensor, Tensor> score_cpu(const Tensor& video, const Tensor& columns,
                                     const Tensor& values, const Tensor& token_head,
                                     const Tensor& frame_head, const std::vector<int64_t>& sizes,
                                     const std::vector<int64_t>& slots, int64_t token_features,
                                     int64_t heads, bool inter_frame, double eps,
                                     std::optional<double> score_bound,
                                     const std::optional<Tensor>& keys_given) {
  const ScorePlan plan =
      plan_score(video, columns, values, token_head, frame_head, sizes, slots, token_features,
                 heads, inter_frame, eps, score_bound, keys_given);
  const Tensor x = torch::stable::contiguous(video);
  const Product product = product_of(x.scalar_type());
  std::optional<Tensor> keys;
  if (keys_given.has_value()) keys = torch::stable::contiguous(*keys_given);
  const std::vector<FoldTables> folds = make_tables(
      plan, torch::stable::contiguous(columns), torch::stable::contiguous(values),
      torch::stable::contiguous(token_head), torch::stable::contiguous(frame_head), keys, product);

  const int64_t pad = padded(plan.features);
  Tensor token = torch::stable::new_empty(x, {plan.tokens}, ScalarType::Float);
  Tensor frame = torch::stable::new_empty(x, {plan.frames}, ScalarType::Float);
  Tensor rows = torch::stable::new_empty(x, {plan.tokens * pad}, ScalarType::Float);
  Tensor moved =
      torch::stable::new_empty(x, {inter_frame ? plan.tokens * pad : 0}, ScalarType::Float);
  float* u = rows.mutable_data_ptr<float>();
  float* difference = moved.mutable_data_ptr<float>();
  make_features(plan, x, folds, product, u, difference);

  float* token_scores = token.mutable_data_ptr<float>();
  float* frame_scores = frame.mutable_data_ptr<float>();
  for (const ScoreVideo& one : plan.videos) {
    const FoldTables& fold = folds[one.fold];
    const int64_t grain = 1 + 512 / one.tokens;
    torch::stable::parallel_for(0, one.frames, grain, [&](int64_t first, int64_t last) {
      std::vector<float> scratch(frame_scratch(plan.features));
      for (int64_t t = first; t < last; ++t) {
        const int64_t at = one.first_token + t * one.tokens;
        const float* mine = inter_frame ? difference + at * pad : nullptr;
        const float* before = inter_frame && t > 0 ? mine - one.tokens * pad : nullptr;
        score_frame(u + at * pad, mine, before, one.tokens, plan.features, fold.token, fold.frame,
                    plan.bound, token_scores + at, frame_scores + one.first_frame + t,
                    scratch.data());
      }
    });
  }
  return {token, frame};
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) { m.impl("score", TORCH_BOX(&cacovid::score_cpu)); }
