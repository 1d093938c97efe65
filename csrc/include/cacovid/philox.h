// Philox4x32-10. The recipe, normative for every backend, stands in cacovid/reference/philox.py.
#pragma once

#include "cacovid/macros.h"

namespace cacovid {

// Numbers of the samplers in the top byte of the first counter word.
constexpr uint32_t kOpOcss = 1;
constexpr uint32_t kOpFrame = 2;
constexpr uint32_t kOpBernoulli = 4;  // 3 is the method `random`

struct PhiloxWords {
  uint32_t word[4];
};

CACOVID_HD PhiloxWords philox4x32(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3,
                                  uint64_t seed) {
  uint32_t k0 = static_cast<uint32_t>(seed);
  uint32_t k1 = static_cast<uint32_t>(seed >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = static_cast<uint64_t>(0xD2511F53u) * c0;
    const uint64_t p1 = static_cast<uint64_t>(0xCD9E8D57u) * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return PhiloxWords{{c0, c1, c2, c3}};
}

// Block `block` (draws 4*block ... 4*block + 3) of the stream of one (video, frame, rollout).
CACOVID_HD PhiloxWords draw_block(uint32_t op, uint32_t block, uint32_t frame, uint32_t rollout,
                                  uint32_t item, uint64_t seed) {
  return philox4x32(block | (op << 24), frame, rollout, item, seed);
}

}  // namespace cacovid
