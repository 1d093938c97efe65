// Philox and -log(u) for sixteen streams at once: the integers and floats of philox.h and
// fixed_point.h, operation by operation.
#pragma once

#include "cacovid/philox.h"
#include "lanes.h"

namespace cacovid {

using WideLanes = uint64_t __attribute__((vector_size(64)));

struct WordPair {
  WordLanes high;
  WordLanes low;
};

// factor * x as high and low words.
CACOVID_INLINE WordPair multiply(WordLanes x, uint64_t factor) {
  constexpr uint64_t kLow = 0xFFFFFFFFu;
  const WideLanes even = ((WideLanes)x & kLow) * factor;
  const WideLanes odd = ((WideLanes)x >> 32) * factor;
  return {(WordLanes)((even >> 32) | (odd & ~kLow)), (WordLanes)((even & kLow) | (odd << 32))};
}

// philox4x32 of sixteen counters.
CACOVID_INLINE void philox_lanes(WordLanes c0, WordLanes c1, WordLanes c2, WordLanes c3,
                                 uint64_t seed, WordLanes* words) {
  uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const WordPair p0 = multiply(c0, 0xD2511F53u), p1 = multiply(c2, 0xCD9E8D57u);
    const WordLanes n0 = p1.high ^ c1 ^ k0, n2 = p0.high ^ c3 ^ k1;
    c1 = p1.low;
    c3 = p0.low;
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// The four words of block `block` of sixteen rollouts' streams.
CACOVID_INLINE void draw_blocks(uint32_t op, uint32_t block, uint32_t frame, WordLanes rollouts,
                                uint32_t item, uint64_t seed, WordLanes* words) {
  philox_lanes(WordLanes{} + (block | (op << 24)), WordLanes{} + frame, rollouts,
               WordLanes{} + item, seed, words);
}

// neg_log of fixed_point.h.
CACOVID_INLINE Lanes neg_log_lanes(WordLanes words) {
  const IntLanes odd = (IntLanes)((words >> 9) * 2u + 1u);  // below 2**24: exact as a float
  const Lanes u = __builtin_convertvector(odd, Lanes) * 5.9604644775390625e-8f;
  const WordLanes bits = (WordLanes)u, mantissa = bits & 0x7FFFFFu;
  const WordLanes above = (WordLanes)(mantissa > 0x3504F3u);  // all ones where true
  const IntLanes k = (IntLanes)(bits >> 23) - 127 - (IntLanes)above;
  const Lanes m = (Lanes)(mantissa | (0x3F800000u - (above & 0x00800000u)));
  const Lanes f = m - 1.0f;
  const Lanes s = f / (f + 2.0f);
  const Lanes t = s * s;
  const Lanes a = s + s;
  Lanes q = t * bit_cast<float>(0x3DE38E39u);
  q = (q + bit_cast<float>(0x3E124925u)) * t;
  q = (q + bit_cast<float>(0x3E4CCCCDu)) * t;
  q = (q + bit_cast<float>(0x3EAAAAABu)) * t;
  const Lanes log_m = a + a * q;
  return -(__builtin_convertvector(k, Lanes) * bit_cast<float>(0x3F317218u) + log_m);
}

// Draws of sixteen rollouts from `rollout` on. first: [16], draw 0 of each. times: [4*blocks][16],
// neg_log of each draw (that of draw 0 counts for nothing).
CACOVID_INLINE void draw_times_body(uint32_t op, int64_t blocks, uint32_t frame, uint32_t rollout,
                                    uint32_t item, uint64_t seed, uint32_t* first, float* times) {
  WordLanes rollouts;
  for (uint32_t i = 0; i < kLanes; ++i) rollouts[i] = rollout + i;
  for (int64_t b = 0; b < blocks; ++b) {
    WordLanes words[4];
    draw_blocks(op, static_cast<uint32_t>(b), frame, rollouts, item, seed, words);
    if (b == 0) std::memcpy(first, words, sizeof(WordLanes));
    for (int64_t j = 0; j < 4; ++j) {
      store(times + (4 * b + j) * kLanes, neg_log_lanes(words[j]));
    }
  }
}

}  // namespace cacovid
