// torch.ops.cacovid.farthest_point on the CPU: distances with a running minimum, as few as decide.
//
// The choice is that of float64 distances. Most of them are never computed:
// - A row's distance to its nearest chosen row only falls as more rows are chosen. A row that is
//   nearer than the one to be chosen next need not be measured again until that one is as near.
// - float32 dot products with a bound on their error bracket each distance, and only rows whose
//   bracket reaches the best one are measured exactly.
#include <algorithm>
#include <cmath>
#include <limits>
#include <mutex>
#include <numeric>
#include <vector>

#include "../common/checks.h"
#include "cacovid/distances_block.h"
#include "distances.h"

namespace cacovid {
namespace {

constexpr double kLargestNorm = 1e36;  // beyond it float32 products may overflow
constexpr int64_t kRowsPerTask = 64;
constexpr int64_t kRowsPerScan = 2048;
constexpr int64_t kAtOnce = 8;     // chosen rows that a row is measured from before it is looked at
constexpr size_t kRunnersUp = 16;  // rows that are looked at first for the next choice

class FarthestPoint {
 public:
  FarthestPoint(const float* rows, int64_t count, int64_t width, int64_t k)
      : rows_(rows),
        count_(count),
        width_(width),
        norms_(count),
        lengths_(count),
        low_(count, std::numeric_limits<double>::infinity()),
        high_(count, std::numeric_limits<double>::infinity()),
        owner_(count, -1),
        seen_(count, 0) {
    chosen_.reserve(k);
    packed_.reserve(k * width);
  }

  // Marks the k chosen rows in taken [count].
  void run(int64_t k, std::vector<char>& taken) {
    int64_t next = first();
    for (int64_t step = 0; step < k; ++step) {
      taken[next] = 1;
      high_[next] = -1.0;
      low_[next] = -1.0;
      chosen_.push_back(next);
      packed_.insert(packed_.end(), rows_ + next * width_, rows_ + (next + 1) * width_);
      if (step + 1 < k) next = best();
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
    // What float64 loses, doubled for safety: the most where one row is far shorter than another.
    rounding_ = 4.0 * (static_cast<double>(width_) / 8.0 + 16.0) * 0x1p-53;
    return std::max_element(away.begin(), away.end()) - away.begin();
  }

  double exact(int64_t i, int64_t j) const {
    return squared_distance(rows_ + i * width_, rows_ + j * width_, width_);
  }

  // Tightens a bracket by the distance to a chosen row.
  void tighten(int64_t i, int64_t chosen, float dot) {
    const double squares = norms_[i] + norms_[chosen];
    const double about = squares - 2.0 * static_cast<double>(dot);
    const double error = error_ * lengths_[i] * lengths_[chosen] + rounding_ * squares + underflow_;
    if (about - error >= high_[i]) return;
    if (about + error < low_[i]) {
      low_[i] = std::max(about - error, 0.0);
      high_[i] = about + error;
      owner_[i] = chosen;
    } else {  // too close to call
      if (low_[i] != high_[i]) high_[i] = exact(i, owner_[i]);
      high_[i] = std::min(high_[i], exact(i, chosen));
      low_[i] = high_[i];
    }
  }

  bool up_to_date(int64_t i) const { return seen_[i] == static_cast<int64_t>(chosen_.size()); }

  // Measures a row from the rows chosen since, as long as it may be as far as `floor`. next: the
  // row after it, or count_. Rows come from memory, a page or more of each, for a few products.
  void measure(int64_t i, int64_t next, double floor) {
    const float* row = rows_ + i * width_;
    const float* soon = next < count_ ? rows_ + next * width_ : nullptr;
    while (!up_to_date(i) && high_[i] >= floor) {
      const int64_t begin = seen_[i];
      const int64_t many = std::min(kAtOnce, static_cast<int64_t>(chosen_.size()) - begin);
      if (exact_alone_) {
        for (int64_t c = begin; c < begin + many; ++c) {
          low_[i] = high_[i] = std::min(high_[i], exact(i, chosen_[c]));
        }
      } else {
        float dots[kAtOnce];
        approximate_dots(packed_.data() + begin * width_, many, &row, 1, width_, dots, kAtOnce,
                         soon);
        soon = nullptr;
        for (int64_t c = 0; c < many; ++c) tighten(i, chosen_[begin + c], dots[c]);
      }
      seen_[i] = begin + many;
    }
  }

  // Measures a row where it may be the next one, and raises `floor`, the distance that the next
  // one has at least.
  void look_at(int64_t i, int64_t next, double& floor, std::vector<int64_t>& found) {
    if (high_[i] < floor) return;
    measure(i, next, floor);
    if (high_[i] < floor) return;
    floor = std::max(floor, low_[i]);
    found.push_back(i);
  }

  // The row whose nearest chosen row is the farthest; the lowest index of equal ones.
  int64_t best() {
    double floor = 0.0;  // below it are the rows that are taken
    std::vector<int64_t> found;
    for (const int64_t i : runners_up_) look_at(i, count_, floor, found);
    found.clear();
    std::mutex joining;
    const double lowest = floor;
    torch::stable::parallel_for(0, count_, kRowsPerScan, [&](int64_t from, int64_t to) {
      double mine = lowest;
      std::vector<int64_t> own;
      const auto candidate = [&](int64_t i) {
        while (i < to && high_[i] < mine) ++i;
        return i < to ? i : count_;
      };
      for (int64_t i = candidate(from); i < to;) {
        const int64_t after = candidate(i + 1);
        look_at(i, after, mine, own);
        i = after;
      }
      const std::lock_guard<std::mutex> lock(joining);
      floor = std::max(floor, mine);
      found.insert(found.end(), own.begin(), own.end());
    });
    // Whatever may be as far as `floor` is measured by now.
    std::sort(found.begin(), found.end());
    double largest = -1.0;
    int64_t next = 0;
    for (const int64_t i : found) {
      if (high_[i] < floor || high_[i] < largest) continue;
      if (low_[i] != high_[i]) low_[i] = high_[i] = exact(i, owner_[i]);
      if (high_[i] > largest) {
        largest = high_[i];
        next = i;
      }
    }
    keep_runners_up(found, next);
    return next;
  }

  // The farthest rows besides the next one: they give a high floor at once.
  void keep_runners_up(std::vector<int64_t>& found, int64_t next) {
    std::erase(found, next);
    const size_t many = std::min(kRunnersUp, found.size());
    std::partial_sort(found.begin(), found.begin() + many, found.end(), [&](int64_t a, int64_t b) {
      return high_[a] != high_[b] ? high_[a] > high_[b] : a < b;
    });
    runners_up_.assign(found.begin(), found.begin() + many);
  }

  const float* rows_;
  const int64_t count_;
  const int64_t width_;
  std::vector<double> norms_;
  std::vector<double> lengths_;
  std::vector<double> low_;  // of the squared distance to the nearest chosen row; -1: taken
  std::vector<double> high_;
  std::vector<int64_t> owner_;  // that nearest row, where low and high differ
  std::vector<int64_t> seen_;   // chosen rows that a row was measured from, in their order
  std::vector<int64_t> chosen_;
  std::vector<float> packed_;  // the chosen rows
  std::vector<int64_t> runners_up_;
  double error_ = 0.0;
  double rounding_ = 0.0;
  double underflow_ = 0.0;
  bool exact_alone_ = false;
};

Tensor farthest_point_cpu(const Tensor& rows, int64_t k) {
  check_float_rows(rows, k);
  const Tensor x = torch::stable::contiguous(rows);
  const int64_t count = x.size(0);
  std::vector<char> taken(count);
  FarthestPoint(x.const_data_ptr<float>(), count, x.size(1), k).run(k, taken);
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
