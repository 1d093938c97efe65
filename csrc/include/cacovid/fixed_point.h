// The arithmetic that every backend reproduces bit for bit; numbers in brackets refer to the recipe
// in cacovid/reference/fixed_point.py. Compile without floating-point contraction
// (-ffp-contract=off, -fmad=false): each product and each sum is rounded on its own.
#pragma once

#include "cacovid/macros.h"

namespace cacovid {

constexpr int kMassBits = 22;
constexpr int kProbBits = 26;
constexpr int64_t kOne = int64_t{1} << kProbBits;
constexpr int64_t kCapLimit = 67041755;  // 0.999
constexpr int64_t kMaxEntries = 32767;   // for which no integer overflows

CACOVID_HD int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
CACOVID_HD int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// [1] Order-preserving key of a float32; the two zeros share one.
CACOVID_HD uint32_t sort_key(float score) {
  const uint32_t bits = score == 0.0f ? 0u : bit_cast<uint32_t>(score);
  return (bits & 0x80000000u) ? ~bits : (bits | 0x80000000u);
}

// The score that a key was made of (a zero comes back as +0).
CACOVID_HD float score_of_key(int64_t key) {
  const uint32_t k = static_cast<uint32_t>(key);
  return bit_cast<float>((k & 0x80000000u) ? (k & 0x7FFFFFFFu) : ~k);
}

// Key and index in one integer: a larger value ranks first, ties to the lowest index.
CACOVID_HD uint64_t packed_key(float score, uint32_t index) {
  return (static_cast<uint64_t>(sort_key(score)) << 32) | (0xFFFFFFFFu - index);
}

CACOVID_HD uint32_t packed_index(uint64_t packed) {
  return 0xFFFFFFFFu - static_cast<uint32_t>(packed);
}

CACOVID_HD float power_of_two(int exponent) {
  return bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
}

struct ExpParts {
  float p;
  int k;
};

// [2] exp(d) of d <= 0 as p * 2**k.
CACOVID_HD ExpParts exp_parts(float d) {
  if (d < -80.0f) d = -80.0f;
  const float y = d * 1.44269502162933349609375f;
  const int k = static_cast<int>(y - 0.5f);
  const float f = static_cast<float>(k);
  const float high = f * 0.693359375f;
  const float low = f * -2.12194440e-4f;
  const float r = (d - high) - low;
  float p = bit_cast<float>(0x3AB60B61u);
  p = p * r;
  p = p + bit_cast<float>(0x3C088889u);
  p = p * r;
  p = p + bit_cast<float>(0x3D2AAAABu);
  p = p * r;
  p = p + bit_cast<float>(0x3E2AAAABu);
  p = p * r;
  p = p + 0.5f;
  p = p * r;
  p = p + 1.0f;
  p = p * r;
  p = p + 1.0f;
  return ExpParts{p, k};
}

// [3] exp(d) in 22-bit fixed point.
CACOVID_HD int64_t mass(float d) {
  const ExpParts e = exp_parts(d);
  return static_cast<int64_t>(e.p * power_of_two(e.k + kMassBits) + 0.5f);
}

CACOVID_HD float exp_value(float d) {
  const ExpParts e = exp_parts(d);
  return e.p * power_of_two(e.k);
}

// [4] -log(u) of the uniform number that a random word stands for.
CACOVID_HD float neg_log(uint32_t word) {
  const float u = static_cast<float>((word >> 9) * 2u + 1u) * 5.9604644775390625e-8f;  // 2**-24
  const uint32_t bits = bit_cast<uint32_t>(u);
  const uint32_t mantissa = bits & 0x7FFFFFu;
  const bool above = mantissa > 0x3504F3u;
  const int k = static_cast<int>(bits >> 23) - 127 + (above ? 1 : 0);
  const float m = bit_cast<float>(mantissa | (above ? 0x3F000000u : 0x3F800000u));
  const float f = m - 1.0f;
  const float s = f / (2.0f + f);
  const float t = s * s;
  const float a = s + s;
  float q = bit_cast<float>(0x3DE38E39u);
  q = q * t;
  q = q + bit_cast<float>(0x3E124925u);
  q = q * t;
  q = q + bit_cast<float>(0x3E4CCCCDu);
  q = q * t;
  q = q + bit_cast<float>(0x3EAAAAABu);
  q = q * t;
  const float product = a * q;
  const float log_m = a + product;
  const float log_power = static_cast<float>(k) * bit_cast<float>(0x3F317218u);
  return -(log_power + log_m);
}

CACOVID_HD int64_t fixed_floor(int64_t entries) { return max64(1, kOne / (entries * entries)); }

// [5] Caps the largest probabilities of `count` integer masses.
//
// masses: [count], non-negative with a positive sum, each below 2**37. out: [count]. v: [count],
// scratch. cap = kOne disables capping. The sums fit: v stays at most kOne + count * floor.
CACOVID_HD void clip_max_fixed(const int64_t* masses, int64_t count, int64_t cap, int64_t floor,
                               int64_t* v, int64_t* out) {
  constexpr int64_t kOpen = -1;  // marks an entry that is not fixed yet
  int64_t sum = 0;
  for (int64_t j = 0; j < count; ++j) sum += masses[j];
  for (int64_t j = 0; j < count; ++j) {
    v[j] = masses[j] * kOne / sum;
    out[j] = kOpen;
  }
  int64_t rest = kOne;
  for (int64_t level = 0;; ++level) {
    sum = 0;
    for (int64_t j = 0; j < count; ++j) {
      v[j] = out[j] == kOpen ? max64(v[j], floor) : 0;
      sum += v[j];
    }
    int64_t best = 0;
    for (int64_t j = 0; j < count; ++j) {
      v[j] = v[j] * kOne / sum;
      if (v[j] > v[best]) best = j;
    }
    if (level == count - 1 || v[best] <= cap) {
      for (int64_t j = 0; j < count; ++j) {
        if (out[j] == kOpen) out[j] = max64(1, (rest * v[j]) >> kProbBits);
      }
      return;
    }
    out[best] = (rest * cap) >> kProbBits;
    rest -= out[best];
    cap = min64(cap * kOne / (kOne - cap), kCapLimit);
  }
}

}  // namespace cacovid
