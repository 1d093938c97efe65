// Distances in float64.
#include "distances.h"

#include "lanes.h"

namespace cacovid {
namespace {

constexpr int64_t kDoubles = 8;
using Doubles = double __attribute__((vector_size(64)));
using Floats = float __attribute__((vector_size(32)));

CACOVID_INLINE Doubles load_doubles(const float* from) {
  Floats floats;
  std::memcpy(&floats, from, sizeof(floats));
  return __builtin_convertvector(floats, Doubles);
}

CACOVID_INLINE Doubles load_doubles(const double* from) {
  Doubles to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

CACOVID_INLINE double sum_of(Doubles x) {
  double sum[kDoubles];
  std::memcpy(sum, &x, sizeof(x));
  for (int64_t half = kDoubles / 2; half > 0; half /= 2) {
    for (int64_t i = 0; i < half; ++i) sum[i] += sum[i + half];
  }
  return sum[0];
}

// Distances to kMany rows at once; every distance has the same order of sums, whatever kMany is.
template <int kMany>
CACOVID_INLINE void group_body(const float* row, const float* rows, int64_t width, double* out) {
  Doubles sums[kMany] = {};
  int64_t d = 0;
  for (; d + kDoubles <= width; d += kDoubles) {
    const Doubles x = load_doubles(row + d);
    for (int j = 0; j < kMany; ++j) {
      const Doubles difference = x - load_doubles(rows + j * width + d);
      sums[j] += difference * difference;
    }
  }
  for (int j = 0; j < kMany; ++j) {
    double sum = sum_of(sums[j]);
    for (int64_t i = d; i < width; ++i) {
      const double difference =
          static_cast<double>(row[i]) - static_cast<double>(rows[j * width + i]);
      sum += difference * difference;
    }
    out[j] = sum;
  }
}

CACOVID_INLINE void distances_body(const float* row, const float* rows, int64_t count,
                                   int64_t width, double* out) {
  int64_t j = 0;
  for (; j + 8 <= count; j += 8) group_body<8>(row, rows + j * width, width, out + j);
  for (; j < count; ++j) group_body<1>(row, rows + j * width, width, out + j);
}

CACOVID_INLINE void add_rows_body(const float* rows, int64_t count, int64_t width, double* sums,
                                  double* norms) {
  for (int64_t i = 0; i < count; ++i) {
    const float* row = rows + i * width;
    Doubles norm = {};
    int64_t d = 0;
    for (; d + kDoubles <= width; d += kDoubles) {
      const Doubles x = load_doubles(row + d);
      const Doubles sum = load_doubles(sums + d) + x;
      std::memcpy(sums + d, &sum, sizeof(sum));
      norm += x * x;
    }
    norms[i] = sum_of(norm);
    for (; d < width; ++d) {
      const double x = row[d];
      sums[d] += x;
      norms[i] += x * x;
    }
  }
}

CACOVID_INLINE void scaled_body(const float* row, double scale, const double* other, int64_t width,
                                double* out) {
  Doubles sums = {};
  int64_t d = 0;
  for (; d + kDoubles <= width; d += kDoubles) {
    const Doubles difference = load_doubles(row + d) * scale - load_doubles(other + d);
    sums += difference * difference;
  }
  *out = sum_of(sums);
  for (; d < width; ++d) {
    const double difference = static_cast<double>(row[d]) * scale - other[d];
    *out += difference * difference;
  }
}

CACOVID_DISPATCH(scaled_into, scaled_body,
                 (const float* row, double scale, const double* other, int64_t width, double* out),
                 (row, scale, other, width, out))

}  // namespace

CACOVID_DISPATCH(squared_distances, distances_body,
                 (const float* row, const float* rows, int64_t count, int64_t width, double* out),
                 (row, rows, count, width, out))
CACOVID_DISPATCH(add_rows, add_rows_body,
                 (const float* rows, int64_t count, int64_t width, double* sums, double* norms),
                 (rows, count, width, sums, norms))

double squared_distance(const float* a, const float* b, int64_t width) {
  double out;
  squared_distances(a, b, 1, width, &out);
  return out;
}

double scaled_distance(const float* row, double scale, const double* other, int64_t width) {
  double out;
  scaled_into(row, scale, other, width, &out);
  return out;
}

}  // namespace cacovid
