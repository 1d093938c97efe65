// torch.ops.cacovid.score on the CPU: a block of rows is multiplied, bfloat16 by oneDNN, everything
// else is done while the block is in cache.
#include <array>
#include <cmath>
#include <optional>
#include <vector>

#include "../common/score_plan.h"
#include "float_product.h"
#include "lanes.h"
#include "one_thread.h"

namespace cacovid {
namespace {

// Bytes of `video` that a block reads: about half of what a core's second-level cache and its share
// of the third hold. The block must not depend on the number of threads, so that scores do not.
constexpr int64_t kBlockBytes = 2 << 20;
constexpr int64_t kMinRows = 32;
constexpr int64_t kMaxRows = 512;
constexpr int64_t kRowsPerSum = 64;  // of a frame's mean: sums of sums err less
// Rows that read the values together: what is loaded once serves both.
constexpr int64_t kRowsTogether = 4;

// A head's weights, padded with zeros to whole lanes.
struct HeadTables {
  int64_t width;
  int64_t pad;
  std::vector<float> bias;
  std::vector<float> hidden;  // [width, pad]: row i is what feature i gives to each hidden unit
  std::vector<float> hidden_bias;
  std::vector<float> output;
  float output_bias;

  HeadTables(const float* flat, int64_t features)
      : width(features),
        pad(padded(features)),
        bias(pad),
        hidden(width * pad),
        hidden_bias(pad),
        output(pad),
        output_bias(flat[width * (width + 3)]) {
    const float* matrix = flat + width;
    const float* after = matrix + width * width;
    for (int64_t i = 0; i < width; ++i) {
      bias[i] = flat[i];
      hidden_bias[i] = after[i];
      output[i] = after[width + i];
      for (int64_t j = 0; j < width; ++j) hidden[j * pad + i] = matrix[i * width + j];
    }
  }
};

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

// --- Rows of a block -----------------------------------------------------------------------------

template <class Element>
CACOVID_INLINE float factor_body(const Element* row, int64_t width, float eps) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) {
      const Lanes x = load(row + i + j * kLanes);
      sums[j] += x * x;
    }
  }
  for (; i + kLanes <= width; i += kLanes) {
    const Lanes x = load(row + i);
    sums[0] += x * x;
  }
  if (i < width) {
    Element rest[kLanes] = {};
    std::memcpy(rest, row + i, (width - i) * sizeof(Element));
    const Lanes x = load(rest);
    sums[0] += x * x;
  }
  const float sum = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  return 1.0f / std::sqrt(sum / static_cast<float>(width) + eps);
}

// RMSNorm's factor of each row.
template <class Element>
CACOVID_INLINE void factors_body(const Element* rows, int64_t count, int64_t width, float eps,
                                 float* factors) {
  for (int64_t i = 0; i < count; ++i) factors[i] = factor_body(rows + i * width, width, eps);
}

template <class Element>
CACOVID_INLINE void widen_body(const Element* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = element(from + i);
}

struct RowSizes {
  int64_t stride;    // between the columns of two rows
  int64_t slots;     // H*Q
  int64_t heads;     // H
  int64_t features;  // P
  bool inter_frame;
};

// Columns of the slots of kLanes rows, times their factors: to[s] holds all rows' column s.
//
// z: rows of columns, the first `count` of them there; the others are taken as the first.
template <class Element>
CACOVID_INLINE void logits_body(const Element* z, const float* factors, int64_t count,
                                const RowSizes& sizes, float* to) {
  const Element* rows[kLanes];
  float scales[kLanes];
  for (int64_t i = 0; i < kLanes; ++i) {
    const int64_t row = i < count ? i : 0;
    rows[i] = z + row * sizes.stride;
    scales[i] = factors[row];
  }
  const Lanes scale = load(scales);
  for (int64_t s = 0; s < sizes.slots; s += kLanes) {
    const int64_t many = sizes.slots - s < kLanes ? sizes.slots - s : kLanes;
    Lanes tile[kLanes];
    if (many == kLanes) {
      for (int64_t i = 0; i < kLanes; ++i) tile[i] = load(rows[i] + s);
    } else {
      for (int64_t i = 0; i < kLanes; ++i) {
        Element rest[kLanes] = {};
        std::memcpy(rest, rows[i] + s, many * sizeof(Element));
        tile[i] = load(rest);
      }
    }
    transpose(tile);
    for (int64_t j = 0; j < many; ++j) store(to + (s + j) * kLanes, tile[j] * scale);
  }
}

// Softmax over the slots of one head, in place, of kLanes rows: row i's logits are lane i.
CACOVID_INLINE void softmax_body(float* logits, int64_t count) {
  Lanes best = load(logits);
  for (int64_t s = 1; s < count; ++s) best = larger(load(logits + s * kLanes), best);
  Lanes sums[2] = {};
  int64_t s = 0;
  for (; s + 2 <= count; s += 2) {
    for (int64_t j = 0; j < 2; ++j) {
      const Lanes e = exp_of_negative(load(logits + (s + j) * kLanes) - best);
      store(logits + (s + j) * kLanes, e);
      sums[j] += e;
    }
  }
  if (s < count) {
    const Lanes e = exp_of_negative(load(logits + s * kLanes) - best);
    store(logits + s * kLanes, e);
    sums[0] += e;
  }
  const Lanes scale = 1.0f / (sums[0] + sums[1]);
  for (s = 0; s < count; ++s) store(logits + s * kLanes, load(logits + s * kLanes) * scale);
}

// `count` columns of a row, times its factor, padded with zeros to whole lanes.
template <class Element>
CACOVID_INLINE void scaled_body(const Element* z, float factor, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(z + i) * factor);
  if (i < count) {
    Element rest[kLanes] = {};
    std::memcpy(rest, z + i, (count - i) * sizeof(Element));
    store(to + i, load(rest) * factor);
  }
}

// Adds the values to kTogether rows of u, kMany lanes of each, by their attention: [slots, kLanes].
template <int kTogether, int kMany>
CACOVID_INLINE void mix_lanes(const float* values, const float* attention, const RowSizes& sizes,
                              float* u) {
  const int64_t pad = padded(sizes.features);
  Lanes sums[kTogether][kMany] = {};
  for (int64_t s = 0; s < sizes.slots; ++s) {
    const float* value = values + s * pad;
    const float* weight = attention + s * kLanes;
    for (int j = 0; j < kMany; ++j) {
      const Lanes x = load(value + j * kLanes);
      for (int i = 0; i < kTogether; ++i) sums[i][j] += x * weight[i];
    }
  }
  for (int i = 0; i < kTogether; ++i) {
    for (int j = 0; j < kMany; ++j) {
      float* out = u + i * pad + j * kLanes;
      store(out, load(out) + sums[i][j]);
    }
  }
}

template <int kTogether>
CACOVID_INLINE void mix_body(const float* values, const float* attention, const RowSizes& sizes,
                             float* u) {
  const int64_t pad = padded(sizes.features);
  int64_t p = 0;
  for (; p + 4 * kLanes <= pad; p += 4 * kLanes) {
    mix_lanes<kTogether, 4>(values + p, attention, sizes, u + p);
  }
  for (; p < pad; p += kLanes) {
    mix_lanes<kTogether, 1>(values + p, attention, sizes, u + p);
  }
}

// Features of rows from their columns.
//
// z: [count, stride]. u, difference: [count, pad of P]. scratch: see feature_scratch.
template <class Element>
CACOVID_INLINE void features_body(const Element* z, const float* factors, int64_t count,
                                  const RowSizes& sizes, const float* values, float* u,
                                  float* difference, float* scratch) {
  const int64_t pad = padded(sizes.features), each = sizes.slots / sizes.heads;
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    const int64_t many = count - begin < kLanes ? count - begin : kLanes;
    const Element* rows = z + begin * sizes.stride;
    logits_body(rows, factors + begin, many, sizes, scratch);
    for (int64_t h = 0; h < sizes.heads; ++h) softmax_body(scratch + h * each * kLanes, each);
    for (int64_t i = 0; i < many; ++i) {
      const Element* row = rows + i * sizes.stride + sizes.slots;
      const float factor = factors[begin + i];
      scaled_body(row, factor, sizes.features, u + (begin + i) * pad);
      if (sizes.inter_frame) {
        scaled_body(row + sizes.features, factor, sizes.features, difference + (begin + i) * pad);
      }
    }
    int64_t i = 0;
    for (; i + kRowsTogether <= many; i += kRowsTogether) {
      mix_body<kRowsTogether>(values, scratch + i, sizes, u + (begin + i) * pad);
    }
    for (; i < many; ++i) mix_body<1>(values, scratch + i, sizes, u + (begin + i) * pad);
  }
}

int64_t feature_scratch(const RowSizes& sizes) { return sizes.slots * kLanes; }

// bias, SiLU, hidden layer, SiLU, output, of kTogether rows.
//
// u: features of the head, rows `apart` floats apart, padded with anything finite. scratch:
// kTogether times the head's pad.
template <int kTogether>
CACOVID_INLINE void head_body(const float* u, int64_t apart, const HeadTables& head, float bound,
                              float* scratch, float* scores) {
  for (int r = 0; r < kTogether; ++r) {
    for (int64_t i = 0; i < head.pad; i += kLanes) {
      store(scratch + r * head.pad + i, silu(load(u + r * apart + i) + load(head.bias.data() + i)));
    }
  }
  Lanes total[kTogether] = {};
  for (int64_t p = 0; p < head.pad; p += kLanes) {
    Lanes sum[kTogether], other[kTogether] = {};
    for (int r = 0; r < kTogether; ++r) sum[r] = load(head.hidden_bias.data() + p);
    const float* weights = head.hidden.data() + p;
    int64_t i = 0;
    for (; i + 2 <= head.width; i += 2) {
      const Lanes even = load(weights + i * head.pad), odd = load(weights + (i + 1) * head.pad);
      for (int r = 0; r < kTogether; ++r) {
        sum[r] += even * scratch[r * head.pad + i];
        other[r] += odd * scratch[r * head.pad + i + 1];
      }
    }
    if (i < head.width) {
      const Lanes last = load(weights + i * head.pad);
      for (int r = 0; r < kTogether; ++r) sum[r] += last * scratch[r * head.pad + i];
    }
    const Lanes output = load(head.output.data() + p);
    for (int r = 0; r < kTogether; ++r) total[r] += silu(sum[r] + other[r]) * output;
  }
  for (int r = 0; r < kTogether; ++r) {
    const float score = sum_of(total[r]) + head.output_bias;
    scores[r] = bound > 0.0f ? bound * std::tanh(score / bound) : score;
  }
}

// Scores of a frame's tokens, and of the frame.
//
// u: [n, pad of P] of the frame, changed; difference: of the frame, or null; before: of the frame
// before it, or null. scratch: see frame_scratch.
CACOVID_INLINE void frame_body(float* u, const float* difference, const float* before,
                               int64_t tokens, int64_t features, const HeadTables& token,
                               const HeadTables& frame, float bound, float* token_scores,
                               float* frame_score, float* scratch) {
  const int64_t pad = padded(features);
  float* means = scratch;
  float* part = scratch + pad + kLanes;
  float* hidden = part + pad;
  constexpr int64_t kTogether = kRowsTogether;
  std::memset(means, 0, (pad + kLanes) * sizeof(float));
  for (int64_t begin = 0; begin < tokens; begin += kRowsPerSum) {
    const int64_t end = begin + kRowsPerSum < tokens ? begin + kRowsPerSum : tokens;
    std::memset(part, 0, pad * sizeof(float));
    for (int64_t i = begin; i < end; ++i) {
      float* row = u + i * pad;
      for (int64_t p = 0; p < pad; p += kLanes) {
        Lanes x = load(row + p);
        if (difference != nullptr) {
          Lanes moved = load(difference + i * pad + p);
          if (before != nullptr) moved -= load(before + i * pad + p);
          x += moved;
          store(row + p, x);
        }
        store(part + p, load(part + p) + x);
      }
    }
    int64_t i = begin;
    for (; i + kTogether <= end; i += kTogether) {
      head_body<kTogether>(u + i * pad, pad, token, bound, hidden, token_scores + i);
    }
    for (; i < end; ++i) head_body<1>(u + i * pad, pad, token, bound, hidden, token_scores + i);
    for (int64_t p = 0; p < pad; p += kLanes) store(means + p, load(means + p) + load(part + p));
  }
  for (int64_t p = 0; p < pad; ++p) means[p] /= static_cast<float>(tokens);
  head_body<1>(means + token.width, pad, frame, bound, hidden, frame_score);
}

int64_t frame_scratch(int64_t features) {
  return (2 + kRowsTogether) * padded(features) + 2 * kLanes;
}

CACOVID_DISPATCH(float_factors, factors_body<float>,
                 (const float* rows, int64_t count, int64_t width, float eps, float* factors),
                 (rows, count, width, eps, factors))
CACOVID_DISPATCH(bfloat16_factors, factors_body<Bfloat16>,
                 (const Bfloat16* rows, int64_t count, int64_t width, float eps, float* factors),
                 (rows, count, width, eps, factors))
CACOVID_DISPATCH(widen_bfloat16, widen_body<Bfloat16>,
                 (const Bfloat16* from, int64_t count, float* to), (from, count, to))
CACOVID_DISPATCH(widen_float16, widen_body<Float16>,
                 (const Float16* from, int64_t count, float* to), (from, count, to))
CACOVID_DISPATCH(float_features, features_body<float>,
                 (const float* z, const float* factors, int64_t count, const RowSizes& sizes,
                  const float* values, float* u, float* difference, float* scratch),
                 (z, factors, count, sizes, values, u, difference, scratch))
CACOVID_DISPATCH(bfloat16_features, features_body<Bfloat16>,
                 (const Bfloat16* z, const float* factors, int64_t count, const RowSizes& sizes,
                  const float* values, float* u, float* difference, float* scratch),
                 (z, factors, count, sizes, values, u, difference, scratch))
CACOVID_DISPATCH(score_frame, frame_body,
                 (float* u, const float* difference, const float* before, int64_t tokens,
                  int64_t features, const HeadTables& token, const HeadTables& frame, float bound,
                  float* token_scores, float* frame_score, float* scratch),
                 (u, difference, before, tokens, features, token, frame, bound, token_scores,
                  frame_score, scratch))

// --- The op --------------------------------------------------------------------------------------

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
