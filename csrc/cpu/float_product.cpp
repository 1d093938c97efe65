// Compiled with fused multiply-add, see CMakeLists.txt.
#include "float_product.h"

#include <algorithm>

#include "lanes.h"

namespace cacovid {
namespace {

constexpr int64_t kPanelLanes = 4;
constexpr int64_t kPanel = kPanelLanes * kLanes;
constexpr int64_t kRows = 6;     // of a tile: its sums and a row of the panel fill 32 registers
constexpr int64_t kDepth = 128;  // so much of a panel stays in the first-level cache

template <int kMany>
CACOVID_INLINE void tile_body(const float* rows, int64_t width, const float* panel, int64_t depth,
                              bool first, float* out, int64_t stride) {
  Lanes sums[kMany][kPanelLanes] = {};
  for (int64_t d = 0; d < depth; ++d) {
    Lanes x[kPanelLanes];
    for (int j = 0; j < kPanelLanes; ++j) x[j] = load(panel + d * kPanel + j * kLanes);
    for (int i = 0; i < kMany; ++i) {
      const float y = rows[i * width + d];
      for (int j = 0; j < kPanelLanes; ++j) sums[i][j] += x[j] * y;
    }
  }
  for (int i = 0; i < kMany; ++i) {
    for (int j = 0; j < kPanelLanes; ++j) {
      float* to = out + i * stride + j * kLanes;
      store(to, first ? sums[i][j] : load(to) + sums[i][j]);
    }
  }
}

CACOVID_INLINE void product_body(const float* rows, int64_t count, const FloatPanels& panels,
                                 float* out) {
  const int64_t width = panels.width, stride = product_stride(panels.columns);
  for (int64_t begin = 0; begin < width; begin += kDepth) {
    const int64_t depth = std::min(kDepth, width - begin);
    const bool first = begin == 0;
    for (int64_t c = 0; c < stride; c += kPanel) {
      const float* panel = panels.values.data() + c * width + begin * kPanel;
      int64_t i = 0;
      for (; i + kRows <= count; i += kRows) {
        tile_body<kRows>(rows + i * width + begin, width, panel, depth, first, out + i * stride + c,
                         stride);
      }
      for (; i < count; ++i) {
        tile_body<1>(rows + i * width + begin, width, panel, depth, first, out + i * stride + c,
                     stride);
      }
    }
  }
}

CACOVID_DISPATCH(product, product_body,
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
