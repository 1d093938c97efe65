// The elements that embeddings are made of, as floats: exact.
#pragma once

#include "cacovid/macros.h"

namespace cacovid {

struct Bfloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

CACOVID_HD float as_float(float value) { return value; }

CACOVID_HD float as_float(Bfloat16 value) {
  return bit_cast<float>(static_cast<uint32_t>(value.bits) << 16);
}

CACOVID_HD float as_float(Float16 value) {
  const uint32_t magnitude = (value.bits & 0x7FFFu) << 13;
  // 2**112 moves the exponent's bias, also of subnormal numbers; infinities and NaN keep theirs.
  const uint32_t scaled =
      bit_cast<uint32_t>(bit_cast<float>(magnitude) * bit_cast<float>(0x77800000u));
  const uint32_t special = magnitude >= 0x0F800000u ? 0x7F800000u : 0u;
  return bit_cast<float>(scaled | special | (static_cast<uint32_t>(value.bits & 0x8000u) << 16));
}

}  // namespace cacovid
