// torch.ops.cacovid.score on the CPU: oneDNN multiplies a block of rows, everything else is done
// while the block is in cache.
#include <array>
#include <cmath>
#include <vector>

#include "../common/score_plan.h"
#include "lanes.h"

namespace cacovid {
namespace {

// Bytes of `video` that a block reads: about half of what a core's second-level cache and its share
// of the third hold. The block must not depend on the number of threads, so that scores do not.
constexpr int64_t kBlockBytes = 2 << 20;
constexpr int64_t kMinRows = 32;
constexpr int64_t kMaxRows = 512;
constexpr int64_t kRowsPerSum = 64;  // of a frame's mean: sums of sums err less
// Rows that read the values together: what is loaded once serves both.
constexpr int64_t kRowsTogether = 2;

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
  Tensor columns;  // [D, C], of the product's dtype
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
  STABLE_TORCH_ERROR_CODE_CHECK(
      torch_call_dispatcher("aten::mm", "out", stack.data(), TORCH_ABI_VERSION));
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

// Softmax over the slots of one head, in place: logits [count] of `row`, padded to whole lanes.
CACOVID_INLINE void softmax_body(float* row, int64_t count) {
  const int64_t pad = padded(count);
  for (int64_t i = count; i < pad; ++i) row[i] = row[0];
  Lanes most = load(row);
  for (int64_t i = kLanes; i < pad; i += kLanes) most = larger(load(row + i), most);
  const float best = largest_of(most);
  for (int64_t i = count; i < pad; ++i) row[i] = best - 100.0f;  // adds nothing to a sum of >= 1
  Lanes sums = {};
  for (int64_t i = 0; i < pad; i += kLanes) {
    const Lanes e = exp_of_negative(load(row + i) - best);
    store(row + i, e);
    sums += e;
  }
  const Lanes scale = splat(1.0f / sum_of(sums));
  for (int64_t i = 0; i < pad; i += kLanes) store(row + i, load(row + i) * scale);
}

struct RowSizes {
  int64_t columns;   // C
  int64_t slots;     // H*Q
  int64_t heads;     // H
  int64_t features;  // P
  bool inter_frame;
};

// What a row of columns, times its factor, gives before the values are mixed.
//
// z: [C]. attention: the softmax of each head, each padded to whole lanes. u, difference: [pad of
// P]. scratch: C and one lane more.
template <class Element>
CACOVID_INLINE void attention_body(const Element* z, float factor, const RowSizes& sizes,
                                   float* attention, float* u, float* difference, float* scratch) {
  const int64_t pad = padded(sizes.features), each = sizes.slots / sizes.heads;
  int64_t c = 0;
  for (; c + kLanes <= sizes.columns; c += kLanes) store(scratch + c, load(z + c) * factor);
  for (; c < sizes.columns; ++c) scratch[c] = element(z + c) * factor;
  for (int64_t h = 0; h < sizes.heads; ++h) {
    float* mine = attention + h * padded(each);
    std::memcpy(mine, scratch + h * each, each * sizeof(float));
    softmax_body(mine, each);
  }
  std::memcpy(u, scratch + sizes.slots, sizes.features * sizeof(float));
  std::memset(u + sizes.features, 0, (pad - sizes.features) * sizeof(float));
  if (sizes.inter_frame) {
    std::memcpy(difference, scratch + sizes.slots + sizes.features, sizes.features * sizeof(float));
    std::memset(difference + sizes.features, 0, (pad - sizes.features) * sizeof(float));
  }
}

// Adds the values to kTogether rows of u, kMany lanes of each, by their attention.
template <int kTogether, int kMany>
CACOVID_INLINE void mix_lanes(const float* values, const float* attention, int64_t apart,
                              const RowSizes& sizes, float* u) {
  const int64_t pad = padded(sizes.features), each = sizes.slots / sizes.heads;
  Lanes sums[kTogether][kMany] = {};
  for (int64_t h = 0; h < sizes.heads; ++h) {
    for (int64_t s = 0; s < each; ++s) {
      const float* value = values + (h * each + s) * pad;
      const float* weight = attention + h * padded(each) + s;
      for (int j = 0; j < kMany; ++j) {
        const Lanes x = load(value + j * kLanes);
        for (int i = 0; i < kTogether; ++i) sums[i][j] += x * weight[i * apart];
      }
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
CACOVID_INLINE void mix_body(const float* values, const float* attention, int64_t apart,
                             const RowSizes& sizes, float* u) {
  const int64_t pad = padded(sizes.features);
  int64_t p = 0;
  for (; p + 4 * kLanes <= pad; p += 4 * kLanes) {
    mix_lanes<kTogether, 4>(values + p, attention, apart, sizes, u + p);
  }
  for (; p < pad; p += kLanes) {
    mix_lanes<kTogether, 1>(values + p, attention, apart, sizes, u + p);
  }
}

// Features of rows from their columns.
//
// z: [count, C]. u, difference: [count, pad of P]. scratch: see feature_scratch.
template <class Element>
CACOVID_INLINE void features_body(const Element* z, const float* factors, int64_t count,
                                  const RowSizes& sizes, const float* values, float* u,
                                  float* difference, float* scratch) {
  const int64_t pad = padded(sizes.features);
  const int64_t apart = sizes.heads * padded(sizes.slots / sizes.heads);
  float* attention = scratch + padded(sizes.columns) + kLanes;
  for (int64_t i = 0; i < count; i += kRowsTogether) {
    const int64_t many = count - i < kRowsTogether ? count - i : kRowsTogether;
    for (int64_t j = 0; j < many; ++j) {
      const int64_t row = i + j;
      attention_body(z + row * sizes.columns, factors[row], sizes, attention + j * apart,
                     u + row * pad, difference == nullptr ? nullptr : difference + row * pad,
                     scratch);
    }
    if (many == kRowsTogether) {
      mix_body<kRowsTogether>(values, attention, apart, sizes, u + i * pad);
    } else {
      for (int64_t j = 0; j < many; ++j) {
        mix_body<1>(values, attention + j * apart, apart, sizes, u + (i + j) * pad);
      }
    }
  }
}

int64_t feature_scratch(const RowSizes& sizes) {
  return padded(sizes.columns) + kLanes +
         kRowsTogether * sizes.heads * padded(sizes.slots / sizes.heads);
}

// bias, SiLU, hidden layer, SiLU, output. u: features of the head, padded with anything finite.
CACOVID_INLINE float head_body(const float* u, const HeadTables& head, float bound,
                               float* scratch) {
  for (int64_t i = 0; i < head.pad; i += kLanes) {
    store(scratch + i, silu(load(u + i) + load(head.bias.data() + i)));
  }
  Lanes total = {};
  for (int64_t p = 0; p < head.pad; p += kLanes) {
    Lanes sum = load(head.hidden_bias.data() + p), other = {};
    const float* weights = head.hidden.data() + p;
    int64_t i = 0;
    for (; i + 2 <= head.width; i += 2) {
      sum += load(weights + i * head.pad) * scratch[i];
      other += load(weights + (i + 1) * head.pad) * scratch[i + 1];
    }
    if (i < head.width) sum += load(weights + i * head.pad) * scratch[i];
    total += silu(sum + other) * load(head.output.data() + p);
  }
  const float score = sum_of(total) + head.output_bias;
  return bound > 0.0f ? bound * std::tanh(score / bound) : score;
}

// Scores of a frame's tokens, and of the frame.
//
// u: [n, pad of P] of the frame, changed; difference: of the frame, or null; before: of the frame
// before it, or null. scratch: 3 * (pad of P) + 2 lanes.
CACOVID_INLINE void frame_body(float* u, const float* difference, const float* before,
                               int64_t tokens, int64_t features, const HeadTables& token,
                               const HeadTables& frame, float bound, float* token_scores,
                               float* frame_score, float* scratch) {
  const int64_t pad = padded(features);
  float* means = scratch;
  float* part = scratch + pad + kLanes;
  float* hidden = part + pad;
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
      token_scores[i] = head_body(row, token, bound, hidden);
    }
    for (int64_t p = 0; p < pad; p += kLanes) store(means + p, load(means + p) + load(part + p));
  }
  for (int64_t p = 0; p < pad; ++p) means[p] /= static_cast<float>(tokens);
  *frame_score = head_body(means + token.width, frame, bound, hidden);
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
    Tensor own = view_of(mine, count, plan.width, ScalarType::Float);
    Tensor matrix = torch::stable::new_empty(own, {plan.width, count}, product);
    torch::stable::copy_(matrix, torch::stable::transpose(own, 0, 1));
    FoldTables tables{
        plan.slots[v], std::vector<float>(plan.slots[v] * pad),
        HeadTables(token_head.const_data_ptr<float>() + v * head_size(plan.token_features),
                   plan.token_features),
        HeadTables(frame_head.const_data_ptr<float>() + v * head_size(frame_features),
                   frame_features),
        matrix};
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
        std::vector<float> wide, factors, scratch;
        std::vector<char> z;
        for (int64_t b = first; b < last; ++b) {
          const Block& block = blocks[b];
          const FoldTables& fold = folds[plan.videos[block.video].fold];
          const RowSizes sizes{fold.columns.size(1), fold.slots, plan.heads, plan.features,
                               plan.inter_frame};
          const char* rows = data + block.begin * plan.width * size;
          factors.resize(block.count);
          z.resize(block.count * sizes.columns * sizeof(float));
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
          const Tensor left = view_of(rows, block.count, plan.width, product);
          const Tensor result = view_of(z.data(), block.count, sizes.columns, product);
          if (product == ScalarType::Float) {
            float_factors(reinterpret_cast<const float*>(rows), block.count, plan.width, plan.eps,
                          factors.data());
            multiply_into(result, left, fold.columns);
            float_features(reinterpret_cast<const float*>(z.data()), factors.data(), block.count,
                           sizes, fold.values.data(), out, moved, scratch.data());
          } else {
            bfloat16_factors(reinterpret_cast<const Bfloat16*>(rows), block.count, plan.width,
                             plan.eps, factors.data());
            multiply_into(result, left, fold.columns);
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
      std::vector<float> scratch(3 * pad + 3 * kLanes);
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
