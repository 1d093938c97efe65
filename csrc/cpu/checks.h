// Checks that the CPU ops share. Errors are std::invalid_argument, a ValueError in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

namespace cacovid {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::invalid_argument(message.str());
}

// A contiguous float32 [count] on the CPU.
inline Tensor contiguous_scores(const Tensor& scores, int64_t count, const char* name) {
  if (!scores.is_cpu()) fail(name, " is not on the CPU; all inputs of an op stand on one device");
  if (scores.scalar_type() != ScalarType::Float) {
    fail(name, " is not float32; convert it with .float()");
  }
  if (scores.dim() != 1 || scores.numel() != count) {
    fail(name, " has ", scores.numel(), " entries in ", scores.dim(),
         " dimensions; the grid asks for [", count, "]");
  }
  return torch::stable::contiguous(scores);
}

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
