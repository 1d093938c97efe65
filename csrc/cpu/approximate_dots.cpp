// Dot products in float32 with a bound on their error. Compiled with fused multiply-add, unlike all
// other files: what is decided by them is decided within the bound alone (csrc/cpu/distances.h).
#include "distances.h"
#include "lanes.h"

namespace cacovid {
namespace {

template <int kRows, int kOthers>
CACOVID_INLINE void tile_body(const float* rows, const float* const* others, int64_t width,
                              float* dots, int64_t stride, const float* next) {
  Lanes sums[kRows][kOthers] = {};
  int64_t d = 0;
  for (; d + kLanes <= width; d += kLanes) {
    if (next != nullptr) __builtin_prefetch(next + d);
    Lanes x[kRows];
    for (int i = 0; i < kRows; ++i) x[i] = load(rows + i * width + d);
    for (int j = 0; j < kOthers; ++j) {
      const Lanes y = load(others[j] + d);
      for (int i = 0; i < kRows; ++i) sums[i][j] += x[i] * y;
    }
  }
  for (int i = 0; i < kRows; ++i) {
    for (int j = 0; j < kOthers; ++j) {
      float sum = sum_of(sums[i][j]);
      for (int64_t e = d; e < width; ++e) sum += rows[i * width + e] * others[j][e];
      dots[j * stride + i] = sum;
    }
  }
}

template <int kRows>
CACOVID_INLINE void rows_body(const float* rows, const float* const* others, int64_t many,
                              int64_t width, float* dots, int64_t stride, const float* next) {
  int64_t j = 0;
  for (; j + 4 <= many; j += 4) {
    tile_body<kRows, 4>(rows, others + j, width, dots + j * stride, stride, next);
  }
  for (; j < many; ++j)
    tile_body<kRows, 1>(rows, others + j, width, dots + j * stride, stride, next);
}

CACOVID_INLINE void dots_body(const float* rows, int64_t count, const float* const* others,
                              int64_t many, int64_t width, float* dots, int64_t stride,
                              const float* next) {
  int64_t i = 0;
  for (; many == 1 && i + 8 <= count; i += 8) {
    tile_body<8, 1>(rows + i * width, others, width, dots + i, stride, next);
  }
  for (; i + 4 <= count; i += 4) {
    rows_body<4>(rows + i * width, others, many, width, dots + i, stride, next);
  }
  for (; i < count; ++i)
    rows_body<1>(rows + i * width, others, many, width, dots + i, stride, next);
}

}  // namespace

CACOVID_DISPATCH(approximate_dots, dots_body,
                 (const float* rows, int64_t count, const float* const* others, int64_t many,
                  int64_t width, float* dots, int64_t stride, const float* next),
                 (rows, count, others, many, width, dots, stride, next))

}  // namespace cacovid
