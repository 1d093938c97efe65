// Compiled with fused multiply-add, see CMakeLists.txt.
#include "float_product.h"

#include <algorithm>
#include <cstring>

#include "lanes.h"

namespace cacovid {
namespace {

constexpr int64_t kPanel = 64;   // columns
constexpr int64_t kRows = 6;     // of a tile: its sums and a row of columns fill the registers
constexpr int64_t kDepth = 128;  // so much of a panel stays in the first-level cache

// Floats of a register. The sums of a tile stay in registers only where none is split.
template <int kFloats>
struct Register;
template <>
struct Register<16> {
  using Type = Lanes;
};
template <>
struct Register<8> {
  using Type = float __attribute__((vector_size(32)));
};

template <int kFloats>
CACOVID_INLINE typename Register<kFloats>::Type read(const float* from) {
  typename Register<kFloats>::Type to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

// kMany rows times kVectors registers of columns, `depth` elements of them.
template <int kFloats, int kVectors, int kMany>
CACOVID_INLINE void tile_body(const float* rows, int64_t width, const float* panel, int64_t depth,
                              bool first, float* out, int64_t stride) {
  using Vector = typename Register<kFloats>::Type;
  Vector sums[kMany][kVectors] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Vector x[kVectors];
    for (int j = 0; j < kVectors; ++j) x[j] = read<kFloats>(panel + d * kPanel + j * kFloats);
    for (int i = 0; i < kMany; ++i) {
      const float y = rows[i * width + d];
      for (int j = 0; j < kVectors; ++j) sums[i][j] += x[j] * y;
    }
  }
  for (int i = 0; i < kMany; ++i) {
    for (int j = 0; j < kVectors; ++j) {
      float* to = out + i * stride + j * kFloats;
      const Vector sum = first ? sums[i][j] : read<kFloats>(to) + sums[i][j];
      std::memcpy(to, &sum, sizeof(sum));
    }
  }
}

template <int kFloats, int kVectors>
CACOVID_INLINE void product_body(const float* rows, int64_t count, const FloatPanels& panels,
                                 float* out) {
  constexpr int64_t kColumns = kVectors * kFloats;
  const int64_t width = panels.width, stride = product_stride(panels.columns);
  for (int64_t begin = 0; begin < width; begin += kDepth) {
    const int64_t depth = std::min(kDepth, width - begin);
    const bool first = begin == 0;
    for (int64_t c = 0; c < stride; c += kColumns) {
      const float* panel =
          panels.values.data() + c / kPanel * kPanel * width + begin * kPanel + c % kPanel;
      int64_t i = 0;
      for (; i + kRows <= count; i += kRows) {
        tile_body<kFloats, kVectors, kRows>(rows + i * width + begin, width, panel, depth, first,
                                            out + i * stride + c, stride);
      }
      for (; i < count; ++i) {
        tile_body<kFloats, kVectors, 1>(rows + i * width + begin, width, panel, depth, first,
                                        out + i * stride + c, stride);
      }
    }
  }
}

CACOVID_INLINE void wide_body(const float* rows, int64_t count, const FloatPanels& panels,
                              float* out) {
  product_body<16, 4>(rows, count, panels, out);
}

CACOVID_INLINE void narrow_body(const float* rows, int64_t count, const FloatPanels& panels,
                                float* out) {
  product_body<8, 2>(rows, count, panels, out);
}

CACOVID_DISPATCH_BY(product, wide_body, narrow_body,
                    (const float* rows, int64_t count, const FloatPanels& panels, float* out),
                    (rows, count, panels, out))

}  // namespace

FloatPanels::FloatPanels(const float* matrix, int64_t count, int64_t depth)
    : width(depth), columns(count), values(product_stride(count) * depth) {
  for (int64_t begin = 0; begin < count; begin += kPanel) {
    const int64_t many = std::min(kPanel, count - begin);
    float* panel = values.data() + begin * depth;
    for (int64_t d = 0; d < depth; ++d) {
      for (int64_t c = 0; c < many; ++c) panel[d * kPanel + c] = matrix[(begin + c) * depth + d];
    }
  }
}

int64_t product_stride(int64_t columns) { return (columns + kPanel - 1) / kPanel * kPanel; }

void float_product(const float* rows, int64_t count, const FloatPanels& panels, float* out) {
  product(rows, count, panels, out);
}

}  // namespace cacovid
