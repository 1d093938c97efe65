// What `score` does with a block of rows after their product: the rows' factors, the softmax over
// slots, the values, the heads. For score.cpp alone.
#pragma once

#include <cmath>
#include <cstring>
#include <vector>

#include "lanes.h"

namespace cacovid {
namespace {

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

CACOVID_INLINE float square_body(const float* row, int64_t width) {
  Lanes sums[4] = {};
  int64_t i = 0;
  for (; i + 4 * kLanes <= width; i += 4 * kLanes) {
    for (int64_t j = 0; j < 4; ++j) {
      const Lanes x = load(row + i + j * kLanes);
      sums[j] += x * x;
    }
  }
  for (; i < width; i += kLanes) {
    Lanes x = {};
    std::memcpy(&x, row + i, (width - i < kLanes ? width - i : kLanes) * sizeof(float));
    sums[0] += x * x;
  }
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

CACOVID_INLINE void squares_body(const float* rows, int64_t count, int64_t width, float* squares) {
  for (int64_t i = 0; i < count; ++i) squares[i] = square_body(rows + i * width, width);
}

// RMSNorm's factor of each row, in place of its square.
void factors_of_squares(float* squares, int64_t count, int64_t width, float eps) {
  for (int64_t i = 0; i < count; ++i) {
    squares[i] = 1.0f / std::sqrt(squares[i] / static_cast<float>(width) + eps);
  }
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

CACOVID_DISPATCH(float_squares, squares_body,
                 (const float* rows, int64_t count, int64_t width, float* squares),
                 (rows, count, width, squares))
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

}  // namespace
}  // namespace cacovid
