// torch.ops.cacovid.density_peaks on the CPU.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../common/checks.h"
#include "cacovid/peak_value.h"
#include "distances.h"

namespace cacovid {
namespace {

constexpr int64_t kStrip = 64;  // rows that stay in cache while the others go by

Tensor density_peaks_cpu(const Tensor& rows, int64_t k, int64_t neighbours) {
  check_float_rows(rows, k);
  check_neighbours(neighbours, rows.size(0));
  const Tensor x = torch::stable::contiguous(rows);
  const int64_t count = x.size(0), width = x.size(1);
  const float* data = x.const_data_ptr<float>();

  // The upper triangle in strips, then mirrored.
  std::vector<double> distances(count * count);
  torch::stable::parallel_for(0, count, 1, [&](int64_t begin, int64_t end) {
    for (int64_t strip = begin; strip < count; strip += kStrip) {
      const int64_t last = std::min(strip + kStrip, count);
      for (int64_t i = begin; i < std::min(end, last); ++i) {
        const int64_t from = std::max(strip, i);
        squared_distances(data + i * width, data + from * width, last - from, width,
                          distances.data() + i * count + from);
      }
    }
  });
  for (int64_t i = 0; i < count; ++i) {
    if (!std::isfinite(distances[i * count + i])) {
      fail("rows have NaN or infinite values; expected finite features");
    }
    for (int64_t j = 0; j < i; ++j) distances[i * count + j] = distances[j * count + i];
  }

  const int64_t near = std::min(neighbours, count);
  std::vector<double> spread(count);  // sum of the smallest squared distances
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    std::vector<double> sorted(count);
    for (int64_t i = begin; i < end; ++i) {
      const double* row = distances.data() + i * count;
      std::copy(row, row + count, sorted.begin());
      std::partial_sort(sorted.begin(), sorted.begin() + near, sorted.end());
      spread[i] = std::accumulate(sorted.begin(), sorted.begin() + near, 0.0);
    }
  });
  const double largest = *std::max_element(distances.begin(), distances.end());
  std::vector<PeakValue> value(count);
  torch::stable::parallel_for(0, count, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* row = distances.data() + i * count;
      double nearest = std::numeric_limits<double>::infinity();
      for (int64_t j = 0; j < count; ++j) {
        if (spread[j] < spread[i] && row[j] < nearest) nearest = row[j];
      }
      if (std::isinf(nearest)) nearest = largest;
      value[i] = peak_value(spread[i], nearest, near, width);
    }
  });
  std::vector<int64_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::nth_element(order.begin(), order.begin() + (k - 1), order.end(), [&](int64_t a, int64_t b) {
    return is_above(value[a], value[b]) || (!is_above(value[b], value[a]) && a < b);
  });
  std::sort(order.begin(), order.begin() + k);
  Tensor keep = torch::stable::new_empty(x, {k}, ScalarType::Long);
  std::copy(order.begin(), order.begin() + k, keep.mutable_data_ptr<int64_t>());
  return keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("density_peaks", TORCH_BOX(&cacovid::density_peaks_cpu));
}
