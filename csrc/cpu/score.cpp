// torch.ops.cacovid.score on the CPU: a block of rows is multiplied, bfloat16 by oneDNN, everything
// else is done while the block is in cache.
#include <array>
#include <optional>
#include <vector>

#include "../common/score_plan.h"
#include "float_product.h"
#include "lanes.h"
#include "one_thread.h"
#include "score_rows.h"

namespace cacovid {
namespace {

// Bytes of `video` that a block reads: about half of what a core's second-level cache and its share
// of the third hold. The block must not depend on the number of threads, so that scores do not.
constexpr int64_t kBlockBytes = 2 << 20;
constexpr int64_t kMinRows = 32;
constexpr int64_t kMaxRows = 512;

struct FoldTables {
  int64_t slots;
  std::vector<float> values;  // [slots, pad of P]
  HeadTables token;
  HeadTables frame;
  int64_t columns;                    // C
  std::optional<FloatPanels> panels;  // of a product in float32
  std::optional<Tensor> matrix;       // [D, C], of a product in bfloat16
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
                                    const Tensor& frame_head, ScalarType product) {
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
        std::nullopt};
    if (product == ScalarType::Float) {
      tables.panels.emplace(mine, count, plan.width);
    } else {
      const Tensor own = view_of(mine, count, plan.width, ScalarType::Float);
      tables.matrix = torch::stable::new_empty(own, {plan.width, count}, product);
      torch::stable::copy_(*tables.matrix, torch::stable::transpose(own, 0, 1));
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

std::vector<Block> cut(const ScorePlan& plan, int64_t element_size) {
  int64_t rows = kBlockBytes / (plan.width * element_size) / kLanes * kLanes;
  rows = rows < kMinRows ? kMinRows : (rows > kMaxRows ? kMaxRows : rows);
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

// Features of all rows: u and difference [N, pad of P].
void make_features(const ScorePlan& plan, const Tensor& video, const std::vector<FoldTables>& folds,
                   ScalarType product, float* u, float* difference) {
  const auto dtype = video.scalar_type();
  const int64_t size = static_cast<int64_t>(video.element_size()), pad = padded(plan.features);
  const char* data = static_cast<const char*>(video.const_data_ptr());
  const std::vector<Block> blocks = cut(plan, product == ScalarType::Float ? 4 : size);
  torch::stable::parallel_for(
      0, static_cast<int64_t>(blocks.size()), 1, [&](int64_t first, int64_t last) {
        const OneThread planned;
        std::vector<float> wide, factors, scratch;
        std::vector<char> z;
        for (int64_t b = first; b < last; ++b) {
          const Block& block = blocks[b];
          const FoldTables& fold = folds[plan.videos[block.video].fold];
          const bool single = product == ScalarType::Float;
          const RowSizes sizes{single ? product_stride(fold.columns) : fold.columns, fold.slots,
                               plan.heads, plan.features, plan.inter_frame};
          const char* rows = data + block.begin * plan.width * size;
          factors.resize(block.count);
          z.resize(block.count * sizes.stride * sizeof(float));
          scratch.resize(feature_scratch(sizes));
          if (product != dtype) {
            wide.resize(block.count * plan.width);
            if (dtype == ScalarType::Half) {
              widen_float16(reinterpret_cast<const Float16*>(rows), block.count * plan.width,
                            wide.data());
            } else {
              widen_bfloat16(reinterpret_cast<const Bfloat16*>(rows), block.count * plan.width,
                             wide.data());
            }
            rows = reinterpret_cast<const char*>(wide.data());
          }
          float* out = u + block.begin * pad;
          float* moved = plan.inter_frame ? difference + block.begin * pad : nullptr;
          if (single) {
            const float* own = reinterpret_cast<const float*>(rows);
            float* result = reinterpret_cast<float*>(z.data());
            float_factors(own, block.count, plan.width, plan.eps, factors.data());
            float_product(own, block.count, *fold.panels, result);
            float_features(result, factors.data(), block.count, sizes, fold.values.data(), out,
                           moved, scratch.data());
          } else {
            const Tensor left = view_of(rows, block.count, plan.width, product);
            const Tensor result = view_of(z.data(), block.count, sizes.stride, product);
            bfloat16_factors(reinterpret_cast<const Bfloat16*>(rows), block.count, plan.width,
                             plan.eps, factors.data());
            multiply_into(result, left, *fold.matrix);
            bfloat16_features(reinterpret_cast<const Bfloat16*>(z.data()), factors.data(),
                              block.count, sizes, fold.values.data(), out, moved, scratch.data());
          }
        }
      });
}

std::tuple<Tensor, Tensor> score_cpu(const Tensor& video, const Tensor& columns,
                                     const Tensor& values, const Tensor& token_head,
                                     const Tensor& frame_head, const std::vector<int64_t>& sizes,
                                     const std::vector<int64_t>& slots, int64_t token_features,
                                     int64_t heads, bool inter_frame, double eps,
                                     std::optional<double> score_bound) {
  const ScorePlan plan = plan_score(video, columns, values, token_head, frame_head, sizes, slots,
                                    token_features, heads, inter_frame, eps, score_bound);
  const Tensor x = torch::stable::contiguous(video);
  // Where bfloat16 is multiplied by emulation, float32 is both faster and closer.
  const bool low = x.scalar_type() == ScalarType::BFloat16 && has_bfloat16_products();
  const ScalarType product = low ? ScalarType::BFloat16 : ScalarType::Float;
  const std::vector<FoldTables> folds = make_tables(
      plan, torch::stable::contiguous(columns), torch::stable::contiguous(values),
      torch::stable::contiguous(token_head), torch::stable::contiguous(frame_head), product);

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
