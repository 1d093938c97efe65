// Checks of values, which only the CPU can make without waiting.
#pragma once

#include <algorithm>
#include <cmath>

#include "../common/checks.h"
#include "cacovid/macros.h"

namespace cacovid {

// Refuses NaN, and infinities unless they are allowed.
inline void check_values(const float* values, int64_t count, const char* name,
                         bool allow_infinite) {
  // Magnitudes as integers order like the numbers, infinity below NaN; a maximum needs no branch.
  constexpr uint32_t kInfinity = 0x7F800000u;
  const uint32_t limit = allow_infinite ? kInfinity : kInfinity - 1;
  uint32_t largest = 0;
  for (int64_t i = 0; i < count; ++i) {
    largest = std::max(largest, bit_cast<uint32_t>(values[i]) & 0x7FFFFFFFu);
  }
  if (largest <= limit) return;
  for (int64_t i = 0; i < count; ++i) {
    const bool good = allow_infinite ? !std::isnan(values[i]) : std::isfinite(values[i]);
    if (!good) {
      fail(name, " has ", allow_infinite ? "NaN" : "NaN or infinite values", " (first at ", i,
           "); the policy or its input is broken, nothing was selected");
    }
  }
}

}  // namespace cacovid
