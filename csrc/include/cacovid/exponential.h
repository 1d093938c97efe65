// exp in float64, the same number on every device: no fused multiply-add, no library.
#pragma once

#include "cacovid/macros.h"

namespace cacovid {

struct DoubleExpParts {
  double p;
  int64_t k;
};

// exp(d) of -1,000 <= d <= 0 as p * 2**k, to about one unit in the last place.
CACOVID_HD DoubleExpParts double_exp_parts(double d) {
  const int64_t k = static_cast<int64_t>(d * 1.4426950408889634 - 0.5);
  const double whole = static_cast<double>(k);
  const double high = whole * 0.693145751953125;
  const double low = whole * 1.42860682030941723212e-6;
  const double x = (d - high) - low;
  constexpr double kInverseFactorials[] = {1.0 / 479001600.0,
                                           1.0 / 39916800.0,
                                           1.0 / 3628800.0,
                                           1.0 / 362880.0,
                                           1.0 / 40320.0,
                                           1.0 / 5040.0,
                                           1.0 / 720.0,
                                           1.0 / 120.0,
                                           1.0 / 24.0,
                                           1.0 / 6.0,
                                           1.0 / 2.0,
                                           1.0,
                                           1.0};  // 12! down to 0!
  double p = 1.0 / 6227020800.0;                  // 13!
  for (int j = 0; j < 13; ++j) {
    p = p * x;
    p = p + kInverseFactorials[j];
  }
  return DoubleExpParts{p, k};
}

CACOVID_HD double double_power_of_two(int64_t exponent) {
  return bit_cast<double>(static_cast<uint64_t>(exponent + 1023) << 52);
}

// exp(d) of d <= 0; 0 where float64 has no smaller number.
CACOVID_HD double exp_of_negative(double d) {
  if (!(d > -746.0)) return 0.0;
  const DoubleExpParts e = double_exp_parts(d);
  const int64_t half = e.k / 2;  // in two steps: 2**k alone may be too small for a normal number
  return (e.p * double_power_of_two(half)) * double_power_of_two(e.k - half);
}

}  // namespace cacovid
