// Checks of values, which only the CPU can make without waiting.
#pragma once

#include <cmath>

#include "../common/checks.h"

namespace cacovid {

// Refuses NaN, and infinities unless they are allowed.
inline void check_values(const float* values, int64_t count, const char* name,
                         bool allow_infinite) {
  for (int64_t i = 0; i < count; ++i) {
    const bool good = allow_infinite ? !std::isnan(values[i]) : std::isfinite(values[i]);
    if (!good) {
      fail(name, " has ", allow_infinite ? "NaN" : "NaN or infinite values", " (first at ", i,
           "); the policy or its input is broken, nothing was selected");
    }
  }
}

}  // namespace cacovid
