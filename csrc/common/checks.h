// Checks that the CPU and CUDA ops share. Errors are std::invalid_argument, a ValueError in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <sstream>
#include <stdexcept>

namespace cacovid {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  ((message << parts), ...);
  throw std::invalid_argument(message.str());
}

// A contiguous float32 [count]. The dispatcher has seen to it that one input is on the op's device;
// `like` is that one.
inline Tensor contiguous_scores(const Tensor& scores, const Tensor& like, int64_t count,
                                const char* name) {
  if (scores.is_cuda() != like.is_cuda() || scores.get_device() != like.get_device()) {
    fail(name, " is on another device; all inputs of an op stand on one");
  }
  if (scores.scalar_type() != ScalarType::Float) {
    fail(name, " is not float32; convert it with .float()");
  }
  if (scores.dim() != 1 || scores.numel() != count) {
    fail(name, " has ", scores.numel(), " entries in ", scores.dim(),
         " dimensions; the grid asks for [", count, "]");
  }
  return torch::stable::contiguous(scores);
}

inline void check_gather(const Tensor& rows, const Tensor& keep) {
  if (rows.is_cuda() != keep.is_cuda() || rows.get_device() != keep.get_device()) {
    fail("rows and keep are on different devices; move them to one");
  }
  if (rows.dim() != 2) fail("rows has ", rows.dim(), " dimensions; expected [S, D]");
  if (keep.dim() != 1 || keep.scalar_type() != ScalarType::Long) {
    fail("keep must be int64 [K], as select_tokens returns it");
  }
}

// Rows of which `k` are kept.
inline void check_rows(const Tensor& rows, int64_t k) {
  if (rows.dim() != 2 || rows.scalar_type() != ScalarType::Float) {
    fail("rows must be float32 [M, D]; convert them with .float()");
  }
  if (k < 1 || k > rows.size(0)) {
    fail("k is ", k, "; expected 1 to ", rows.size(0), ", the number of rows");
  }
}

}  // namespace cacovid
