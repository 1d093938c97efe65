// torch.ops.cacovid.farthest_point on the CPU: k distances per row with a running minimum.
//
// The choice is that of float64 distances. Most of them are never computed: float32 dot products
// with a bound on their error bracket each row's distance to its nearest chosen row, and only rows
// whose bracket reaches the best one are measured exactly. The dot products come in batches: the
// rows that stand highest are likely to be chosen next, and a product with several of them reads
// the matrix once.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "../common/checks.h"
#include "cacovid/distances_block.h"
#include "distances.h"

namespace cacovid {
namespace {

constexpr int64_t kLargestBatch = 32;
constexpr int64_t kSlots = 2 * kLargestBatch;  // dot products that are kept for rows not yet chosen
constexpr double kLargestNorm = 1e36;          // beyond it float32 products may overflow
constexpr int64_t kRowsPerTask = 64;

class FarthestPoint {
 public:
  FarthestPoint(const float* rows, int64_t count, int64_t width)
      : rows_(rows),
        count_(count),
        width_(width),
        norms_(count),
        lengths_(count),
        low_(count, std::numeric_limits<double>::infinity()),
        high_(count, std::numeric_limits<double>::infinity()),
        owner_(count, -1),
        slot_of_(count, -1),
        row_in_(kSlots, -1),
        dots_(kSlots * count) {}

  // Marks the k chosen rows in taken [count].
  void run(int64_t k, std::vector<char>& taken) {
    int64_t next = first();
    for (int64_t step = 0; step < k; ++step) {
      taken[next] = 1;
      high_[next] = -1.0;
      low_[next] = -1.0;
      if (step + 1 == k) break;
      if (slot_of_[next] < 0) fill(next, k - step - 1);
      measure(next);
      next = best();
    }
  }

 private:
  // The row farthest from the mean: the number of rows times as far from their sum, which needs no
  // quotient, so that sums of integers stay exact and the two of two rows are equally far.
  int64_t first() {
    std::vector<double> sums(width_), away(count_);
    for (int64_t begin = 0; begin < count_; begin += kRowsOfASum) {
      std::vector<double> piece(width_);
      add_rows(rows_ + begin * width_, std::min(kRowsOfASum, count_ - begin), width_, piece.data(),
               norms_.data() + begin);
      for (int64_t d = 0; d < width_; ++d) sums[d] += piece[d];
    }
    torch::stable::parallel_for(0, count_, kRowsPerTask, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        away[i] =
            scaled_distance(rows_ + i * width_, static_cast<double>(count_), sums.data(), width_);
      }
    });
    for (int64_t i = 0; i < count_; ++i) {
      if (!std::isfinite(norms_[i])) {
        fail("rows have NaN or infinite values; expected finite features");
      }
      lengths_[i] = std::sqrt(norms_[i]);
    }
    const double largest = *std::max_element(norms_.begin(), norms_.end());
    exact_alone_ = largest > kLargestNorm;
    // What float32 loses to numbers below its range.
    underflow_ = static_cast<double>(width_) * 1e-37;
    error_ = 2.0 * dot_error(width_);
    return std::max_element(away.begin(), away.end()) - away.begin();
  }

  // Dot products of row `next`, and of those that may follow it, with all rows.
  void fill(int64_t next, int64_t left) {
    if (exact_alone_) return;
    // More at a time while most of them are used.
    batch_ = used_ * 4 >= batch_ * 3
                 ? std::min(kLargestBatch, 2 * batch_)
                 : (used_ * 2 < batch_ ? std::max<int64_t>(4, batch_ / 2) : batch_);
    used_ = 0;
    const int64_t wanted = std::min(batch_, left);
    std::vector<int64_t> batch;
    for (int64_t i = 0; i < count_; ++i) {
      if (high_[i] >= 0.0 && slot_of_[i] < 0) batch.push_back(i);
    }
    const int64_t others = std::min<int64_t>(wanted - 1, static_cast<int64_t>(batch.size()));
    if (others > 0) {
      std::nth_element(
          batch.begin(), batch.begin() + (others - 1), batch.end(),
          [&](int64_t a, int64_t b) { return high_[a] != high_[b] ? high_[a] > high_[b] : a < b; });
    }
    batch.resize(others > 0 ? others : 0);
    batch.push_back(next);
    std::vector<const float*> rows;
    const int64_t many = static_cast<int64_t>(batch.size());
    // The slots stand in a circle; the oldest are taken, one after another.
    if (oldest_ + many > kSlots) oldest_ = 0;
    const int64_t begin = oldest_;
    oldest_ += many;
    for (int64_t j = 0; j < many; ++j) {
      const int64_t before = row_in_[begin + j];
      if (before >= 0) slot_of_[before] = -1;
      row_in_[begin + j] = batch[j];
      slot_of_[batch[j]] = begin + j;
      rows.push_back(rows_ + batch[j] * width_);
    }
    torch::stable::parallel_for(0, count_, kRowsPerTask, [&](int64_t from, int64_t to) {
      approximate_dots(rows_ + from * width_, to - from, rows.data(), many, width_,
                       dots_.data() + begin * count_ + from, count_);
    });
  }

  double exact(int64_t i, int64_t j) const {
    return squared_distance(rows_ + i * width_, rows_ + j * width_, width_);
  }

  // Tightens every bracket by the distance to the newly chosen row.
  void measure(int64_t chosen) {
    ++used_;
    const float* dots = exact_alone_ ? nullptr : dots_.data() + slot_of_[chosen] * count_;
    torch::stable::parallel_for(0, count_, exact_alone_ ? 16 : 8192, [&](int64_t from, int64_t to) {
      for (int64_t i = from; i < to; ++i) {
        if (high_[i] <= 0.0) continue;  // taken, or a copy of a chosen row
        if (exact_alone_) {
          low_[i] = high_[i] = std::min(high_[i], exact(i, chosen));
          continue;
        }
        const double about = norms_[i] + norms_[chosen] - 2.0 * static_cast<double>(dots[i]);
        const double error = error_ * lengths_[i] * lengths_[chosen] + underflow_;
        if (about - error >= high_[i]) continue;
        if (about + error < low_[i]) {
          low_[i] = std::max(about - error, 0.0);
          high_[i] = about + error;
          owner_[i] = chosen;
        } else {  // too close to call
          if (low_[i] != high_[i]) high_[i] = exact(i, owner_[i]);
          const double other = exact(i, chosen);
          if (other < high_[i]) high_[i] = other;
          low_[i] = high_[i];
        }
      }
    });
    if (!exact_alone_) {
      row_in_[slot_of_[chosen]] = -1;
      slot_of_[chosen] = -1;
    }
  }

  // The row whose nearest chosen row is the farthest; the lowest index of equal ones.
  int64_t best() {
    const double floor = *std::max_element(low_.begin(), low_.end());
    double largest = -1.0;
    int64_t found = 0;
    for (int64_t i = 0; i < count_; ++i) {
      if (high_[i] < floor || high_[i] < largest) continue;
      if (low_[i] != high_[i]) low_[i] = high_[i] = exact(i, owner_[i]);
      if (high_[i] > largest) {
        largest = high_[i];
        found = i;
      }
    }
    return found;
  }

  const float* rows_;
  const int64_t count_;
  const int64_t width_;
  std::vector<double> norms_;
  std::vector<double> lengths_;
  std::vector<double> low_;  // of the squared distance to the nearest chosen row; -1: taken
  std::vector<double> high_;
  std::vector<int64_t> owner_;    // that nearest row, where low and high differ
  std::vector<int64_t> slot_of_;  // where the row's dot products stand
  std::vector<int64_t> row_in_;
  std::vector<float> dots_;
  int64_t oldest_ = 0;
  int64_t batch_ = 4;
  int64_t used_ = 0;
  double error_ = 0.0;
  double underflow_ = 0.0;
  bool exact_alone_ = false;
};

Tensor farthest_point_cpu(const Tensor& rows, int64_t k) {
  check_float_rows(rows, k);
  const Tensor x = torch::stable::contiguous(rows);
  const int64_t count = x.size(0);
  std::vector<char> taken(count);
  FarthestPoint(x.const_data_ptr<float>(), count, x.size(1)).run(k, taken);
  Tensor keep = torch::stable::new_empty(x, {k}, ScalarType::Long);
  int64_t* out = keep.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (taken[i]) *out++ = i;
  }
  return keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) {
  m.impl("farthest_point", TORCH_BOX(&cacovid::farthest_point_cpu));
}
