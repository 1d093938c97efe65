// What the compiled library says of itself. Tensor ops register in their own files.

#include <torch/csrc/stable/library.h>

#include <cstdint>

namespace cacovid {
namespace {

// Raised whenever an op's schema or meaning changes, so that a library left over from an earlier
// build of a checkout is told apart from one that fits the Python files beside it.
constexpr int64_t kInterface = 2;

int64_t interface() { return kInterface; }

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_FRAGMENT(cacovid, m) { m.def("_interface() -> int"); }

STABLE_TORCH_LIBRARY_IMPL(cacovid, CompositeExplicitAutograd, m) {
  m.impl("_interface", TORCH_BOX(&cacovid::interface));
}
