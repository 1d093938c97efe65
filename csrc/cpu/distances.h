// Squared Euclidean distances between rows of float32.
#pragma once

#include <cstdint>

namespace cacovid {

// In float64: exact differences, sums in one order. For integers below 2**20 the result is exact,
// so that equal distances are equal.
double squared_distance(const float* a, const float* b, int64_t width);

// out[j] = squared_distance(row, rows + j*width) for `count` rows, several at a time.
void squared_distances(const float* row, const float* rows, int64_t count, int64_t width,
                       double* out);

// sums[d] += rows[i][d] over `count` rows, in order; norms[i] = |rows[i]|**2.
void add_rows(const float* rows, int64_t count, int64_t width, double* sums, double* norms);

// |scale*row - other|**2.
double scaled_distance(const float* row, double scale, const double* other, int64_t width);

// dots[j*stride + i] = rows[i] . others[j] for `count` rows and `many` others, in float32: off by
// at most dot_error(width) * |rows[i]| * |others[j]|. Not for exact comparisons: the compiler may
// fuse multiply and add here. next: a row that will be read soon, or null; it is fetched meanwhile.
void approximate_dots(const float* rows, int64_t count, const float* const* others, int64_t many,
                      int64_t width, float* dots, int64_t stride, const float* next);

// Each lane adds width/16 products; then the lanes, and a tail. Doubled for safety.
inline double dot_error(int64_t width) {
  return 2.0 * (static_cast<double>(width) / 16.0 + 24.0) * 0x1p-24;
}

}  // namespace cacovid
