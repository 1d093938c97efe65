// Density times separation of a row, as two numbers of which neither vanishes.
#pragma once

#include <cmath>

#include "cacovid/exponential.h"

namespace cacovid {

// `mantissa * 2**exponent`: the larger exponent is the larger value, then the larger mantissa.
//
// Exponents are whole numbers in float64. Those beyond 2**53 are rounded; the mantissa is then
// multiplied by the power of two that rounding took away, so that the order stays.
struct PeakValue {
  double exponent;
  double mantissa;
};

CACOVID_HD bool is_above(const PeakValue& a, const PeakValue& b) {
  return a.exponent != b.exponent ? a.exponent > b.exponent : a.mantissa > b.mantissa;
}

// `exp(-spread / (near * width)) * sqrt(nearest / width)`.
//
// Args:
//   spread: The sum of the `near` smallest squared distances of a row.
//   nearest: The squared distance to the nearest denser row.
//   near: Distances that make the density.
//   width: Entries of a row.
CACOVID_HD PeakValue peak_value(double spread, double nearest, int64_t near, int64_t width) {
  constexpr double kLog2OfE = 1.4426950408889634, kLogOf2 = 0.6931471805599453;
  const double separation = sqrt(nearest / static_cast<double>(width));
  const double lowest = bit_cast<double>(uint64_t{0xFFF0} << 48);  // minus infinity
  if (!(separation > 0.0)) return PeakValue{lowest, 0.0};
  // 2**-halvings = 2**-whole * 2**-(halvings - whole), the second within (1/2, 1].
  const double halvings = spread / static_cast<double>(near * width) * kLog2OfE;
  const double whole = floor(halvings);
  const double value = exp_of_negative((whole - halvings) * kLogOf2) * separation;
  const uint64_t bits = bit_cast<uint64_t>(value);
  const double own = static_cast<double>(static_cast<int64_t>(bits >> 52) - 1022);
  const double mantissa =
      bit_cast<double>((bits & ((uint64_t{1} << 52) - 1)) | uint64_t{1022} << 52);
  const double exponent = own - whole;
  // What rounding took from the difference, exactly (Knuth's two-sum).
  const double back = exponent - own;
  const double lost = (own - (exponent - back)) + (-whole - back);
  return PeakValue{exponent, mantissa * double_power_of_two(static_cast<int64_t>(lost))};
}

}  // namespace cacovid
