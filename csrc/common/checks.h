// Checks that the CPU and CUDA ops share. Errors are std::invalid_argument, a ValueError in Python.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>
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

// Rows [N, D] and positions [N] or [A, N] of the scored tokens.
inline void check_select_and_gather(const Tensor& scores, const Tensor& rows,
                                    const std::optional<Tensor>& positions, int64_t tokens) {
  if (rows.is_cuda() != scores.is_cuda() || rows.get_device() != scores.get_device()) {
    fail("rows and token_scores are on different devices; move them to one");
  }
  if (rows.dim() != 2 || rows.size(0) != tokens) {
    fail("rows must be [", tokens, ", D], one for each video token");
  }
  if (!positions.has_value()) return;
  if (positions->is_cuda() != scores.is_cuda() || positions->get_device() != scores.get_device()) {
    fail("position_ids and token_scores are on different devices; move them to one");
  }
  const int64_t dim = positions->dim();
  if (positions->scalar_type() != ScalarType::Long || dim < 1 || dim > 2 ||
      positions->size(dim - 1) != tokens) {
    fail("position_ids must be int64 [", tokens, "] or [A, ", tokens, "]");
  }
}

// Memory for the kept tokens' positions; [0] where there are none.
inline Tensor kept_positions_like(const Tensor& keep, const std::optional<Tensor>& positions,
                                  int64_t kept) {
  if (!positions.has_value()) return torch::stable::new_empty(keep, {0});
  if (positions->dim() == 1) return torch::stable::new_empty(keep, {kept});
  return torch::stable::new_empty(keep, {positions->size(0), kept});
}

// The masks of one part of the loss.
inline void check_masks(const char* name, const Tensor& masks, int64_t rollouts, int64_t count) {
  if (masks.dim() != 2 || masks.scalar_type() != ScalarType::Bool || masks.size(0) != rollouts ||
      masks.size(1) != count || rollouts < 1 || count < 1) {
    fail("the ", name, " masks are not bool [", rollouts, ", ", count, "], at least [1, 1]");
  }
}

// Rows of which `k` are kept.
inline void check_row_count(const Tensor& rows, int64_t k) {
  if (rows.dim() != 2) fail("rows have ", rows.dim(), " dimensions; expected [M, D]");
  if (k < 1 || k > rows.size(0)) {
    fail("k is ", k, "; expected 1 to ", rows.size(0), ", the number of rows");
  }
}

// The form for the CPU reads float32.
inline void check_float_rows(const Tensor& rows, int64_t k) {
  check_row_count(rows, k);
  if (rows.scalar_type() != ScalarType::Float) {
    fail("rows must be float32 [M, D]; convert them with .float()");
  }
}

inline void check_neighbours(int64_t neighbours, int64_t count) {
  if (neighbours < 1) fail("neighbours is ", neighbours, "; expected at least 1");
  if (count > (int64_t{1} << 20)) fail("rows are ", count, "; expected 1,048,576 at most");
}

}  // namespace cacovid
