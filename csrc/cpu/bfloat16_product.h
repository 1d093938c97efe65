// Products of bfloat16 rows with a few columns, the same on any number of threads.
#pragma once

#include <cstdint>
#include <vector>

#include "cacovid/elements.h"

namespace cacovid {

// Whether bfloat16_product may be called: the processor multiplies pairs of bfloat16.
bool has_bfloat16_product();

// Whether the processor multiplies whole tiles of bfloat16 (AMX), which a library knows to use.
bool has_bfloat16_tiles();

// The right side of a product, in panels that a tile of rows reads from one end to the other.
struct Bfloat16Panels {
  int64_t width;                 // D
  int64_t columns;               // C
  std::vector<uint32_t> values;  // [panels, D/2 upwards, kPanel] pairs, those beyond C, D are zero

  // columns: [C, D] float32, rounded here.
  Bfloat16Panels(const float* matrix, int64_t count, int64_t depth);
};

// Floats between two rows of a product: whole panels.
int64_t bfloat16_product_stride(int64_t columns);

// out[i, c] = rows[i] . column c of the panels. rows: [count, D]. out: float32,
// [count, bfloat16_product_stride(C)].
//
// Each sum is of sums over kDepth elements in order. A library's plan, and with it the order,
// may depend on the number of rows and of threads; it also rounds what it gives to bfloat16.
void bfloat16_product(const Bfloat16* rows, int64_t count, const Bfloat16Panels& panels,
                      float* out);

// out[i] = rows[i] . rows[i].
void bfloat16_squares(const Bfloat16* rows, int64_t count, int64_t width, float* out);

}  // namespace cacovid
