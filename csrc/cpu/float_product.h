// Products of float32 rows with a few columns, the same on any number of threads.
#pragma once

#include <cstdint>
#include <vector>

namespace cacovid {

// The right side of a product, in panels that a tile of rows reads from one end to the other.
struct FloatPanels {
  int64_t width;              // D
  int64_t columns;            // C
  std::vector<float> values;  // [panels, D, kPanel], columns beyond C are zero

  // columns: [C, D].
  FloatPanels(const float* matrix, int64_t count, int64_t depth);
};

// Floats between two rows of a product: whole panels.
int64_t product_stride(int64_t columns);

// out[i, c] = rows[i] . column c of the panels. rows: [count, D]. out: [count, product_stride(C)].
//
// Each sum is of sums over kDepth elements in order. Libraries' products depend on the number of
// threads that they find (MKL splits D among them), and scores must not. The compiler may fuse
// multiply and add here, which every processor with AVX2 has: these give the same bits.
void float_product(const float* rows, int64_t count, const FloatPanels& panels, float* out);

}  // namespace cacovid
