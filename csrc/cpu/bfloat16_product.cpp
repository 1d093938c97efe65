#include "bfloat16_product.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#include <immintrin.h>
#define CACOVID_PAIRS __attribute__((target(CACOVID_WIDE ",avx512bf16")))
#endif

namespace cacovid {
namespace {

constexpr int64_t kPanel = 64;          // columns
constexpr int64_t kRows = 6;            // of a tile: its sums and a row of columns fill registers
constexpr int64_t kDepth = 256;         // so many elements are added before they join the others
constexpr int64_t kPairs = 2 * kLanes;  // elements of a register

#if defined(CACOVID_PAIRS)

// sums + the products of both elements of each pair.
CACOVID_PAIRS CACOVID_INLINE Lanes add_products(Lanes sums, WordLanes a, WordLanes b) {
  return (Lanes)_mm512_dpbf16_ps((__m512)sums, (__m512bh)a, (__m512bh)b);
}

CACOVID_PAIRS CACOVID_INLINE WordLanes pairs(const void* from) {
  WordLanes to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

// kMany rows times kVectors registers of columns; a last element alone is paired with zero.
template <int kVectors, int kMany>
CACOVID_PAIRS CACOVID_INLINE void tile(const Bfloat16* rows, int64_t width, const uint32_t* panel,
                                       int64_t depth, bool first, float* out, int64_t stride) {
  Lanes sums[kMany][kVectors] = {};
  const auto add = [&](int64_t d, int64_t elements) CACOVID_PAIRS {
    WordLanes x[kVectors];
    for (int j = 0; j < kVectors; ++j) x[j] = pairs(panel + d / 2 * kPanel + j * kLanes);
    for (int i = 0; i < kMany; ++i) {
      uint32_t pair = 0;
      std::memcpy(&pair, rows + i * width + d, elements * sizeof(Bfloat16));
      const WordLanes y = WordLanes{} + pair;
      for (int j = 0; j < kVectors; ++j) sums[i][j] = add_products(sums[i][j], x[j], y);
    }
  };
  for (int64_t d = 0; d + 2 <= depth; d += 2) add(d, 2);
  if (depth % 2 != 0) add(depth - 1, 1);
  for (int i = 0; i < kMany; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* to = out + i * stride + j * kLanes;
      store(to, first ? sums[i][j] : load(to) + sums[i][j]);
    }
  }
}

template <int kVectors>
CACOVID_PAIRS CACOVID_INLINE void strip(const Bfloat16* rows, int64_t count, int64_t width,
                                        const uint32_t* panel, int64_t depth, bool first,
                                        float* out, int64_t stride) {
  int64_t i = 0;
  for (; i + kRows <= count; i += kRows) {
    tile<kVectors, kRows>(rows + i * width, width, panel, depth, first, out + i * stride, stride);
  }
  for (; i < count; ++i) {
    tile<kVectors, 1>(rows + i * width, width, panel, depth, first, out + i * stride, stride);
  }
}

CACOVID_PAIRS void product(const Bfloat16* rows, int64_t count, const Bfloat16Panels& panels,
                           float* out) {
  const int64_t width = panels.width, stride = bfloat16_product_stride(panels.columns);
  const int64_t length = (width + 1) / 2 * kPanel;
  for (int64_t begin = 0; begin < width; begin += kDepth) {
    const int64_t depth = std::min(kDepth, width - begin);
    for (int64_t c = 0; c < stride; c += kPanel) {
      const uint32_t* panel = panels.values.data() + c / kPanel * length + begin / 2 * kPanel;
      const auto run = [&]<int kVectors>() CACOVID_PAIRS {
        strip<kVectors>(rows + begin, count, width, panel, depth, begin == 0, out + c, stride);
      };
      switch (std::min(kPanel, stride - c) / kLanes) {
        case 1:
          run.template operator()<1>();
          break;
        case 2:
          run.template operator()<2>();
          break;
        case 3:
          run.template operator()<3>();
          break;
        default:
          run.template operator()<4>();
      }
    }
  }
}

// To the nearest, ties to even, as PyTorch rounds; NaN stays NaN.
CACOVID_PAIRS CACOVID_INLINE HalfLanes rounded(Lanes x) {
  const WordLanes bits = (WordLanes)x;
  const WordLanes near = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
  const WordLanes nan = (WordLanes)((bits & 0x7FFFFFFFu) > 0x7F800000u);
  return __builtin_convertvector((nan & ((bits >> 16) | 0x40u)) | (~nan & near), HalfLanes);
}

// Columns of float32 to panels, kLanes columns of kLanes pairs at a time.
CACOVID_PAIRS void pack(const float* matrix, int64_t count, int64_t depth, uint32_t* values) {
  const int64_t length = (depth + 1) / 2 * kPanel;
  for (int64_t c = 0; c < count; c += kLanes) {
    uint32_t* panel = values + c / kPanel * length + c % kPanel;
    for (int64_t d = 0; d < depth; d += kPairs) {
      const int64_t elements = std::min(kPairs, depth - d);
      Lanes tile[kLanes] = {};
      for (int64_t i = 0; i < std::min(kLanes, count - c); ++i) {
        float column[kPairs] = {};
        std::memcpy(column, matrix + (c + i) * depth + d, elements * sizeof(float));
        const HalfLanes halves[2] = {rounded(load(column)), rounded(load(column + kLanes))};
        std::memcpy(&tile[i], halves, sizeof(tile[i]));
      }
      transpose(tile);
      for (int64_t j = 0; j < (elements + 1) / 2; ++j) {
        std::memcpy(panel + (d / 2 + j) * kPanel, &tile[j], sizeof(tile[j]));
      }
    }
  }
}

CACOVID_PAIRS void squares(const Bfloat16* rows, int64_t count, int64_t width, float* out) {
  for (int64_t i = 0; i < count; ++i) {
    const Bfloat16* row = rows + i * width;
    Lanes sums[4] = {};
    int64_t d = 0;
    for (; d + 4 * kPairs <= width; d += 4 * kPairs) {
      for (int64_t j = 0; j < 4; ++j) {
        const WordLanes x = pairs(row + d + j * kPairs);
        sums[j] = add_products(sums[j], x, x);
      }
    }
    for (; d < width; d += kPairs) {
      WordLanes x = {};
      std::memcpy(&x, row + d, std::min(kPairs, width - d) * sizeof(Bfloat16));
      sums[0] = add_products(sums[0], x, x);
    }
    out[i] = sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
}

#else

void product(const Bfloat16*, int64_t, const Bfloat16Panels&, float*) {}
void pack(const float*, int64_t, int64_t, uint32_t*) {}
void squares(const Bfloat16*, int64_t, int64_t, float*) {}

#endif

}  // namespace

bool has_bfloat16_product() {
#if defined(CACOVID_PAIRS)
  return has_avx512() && __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

bool has_bfloat16_tiles() {
#if defined(CACOVID_PAIRS) && __GNUC__ >= 11
  return has_bfloat16_product() && __builtin_cpu_supports("amx-bf16");
#else
  return false;
#endif
}

Bfloat16Panels::Bfloat16Panels(const float* matrix, int64_t count, int64_t depth)
    : width(depth),
      columns(count),
      values((count + kPanel - 1) / kPanel * kPanel * ((depth + 1) / 2)) {
  pack(matrix, count, depth, values.data());
}

int64_t bfloat16_product_stride(int64_t columns) { return padded(columns); }

void bfloat16_product(const Bfloat16* rows, int64_t count, const Bfloat16Panels& panels,
                      float* out) {
  product(rows, count, panels, out);
}

void bfloat16_squares(const Bfloat16* rows, int64_t count, int64_t width, float* out) {
  squares(rows, count, width, out);
}

}  // namespace cacovid
