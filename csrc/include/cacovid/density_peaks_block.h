// Density peaks by groups of threads: the numbers of csrc/cpu/density_peaks.cpp, term by term.
#pragma once

#include <cmath>

#include "cacovid/distances_block.h"
#include "cacovid/peak_value.h"

namespace cacovid {

template <class Element>
struct DensityPeaks {
  const Element* rows;  // [count, width]
  int64_t count;
  int64_t width;
  int64_t near;       // distances that make a density, at most `count`
  double* distances;  // [count, count], squared
  double* spread;     // [count], sum of the smallest
  double* largest;    // [count], of a row's distances
  PeakValue* value;   // [count], density times separation
};

constexpr int kRowsOfATile = 4;  // and columns of a team

// Distances of kRowsOfATile rows to as many columns for each team, both ways round; tiles below
// the diagonal have nothing to do. Keeping 16 sums in a thread spares half of the reading.
template <class Block, class Element>
CACOVID_HD void distances_block(Block& block, const DensityPeaks<Element>& p, int64_t tile_row,
                                int64_t tile_column) {
  constexpr int kSide = kRowsOfATile, kSums = kSide * kSide;
  const int64_t teams = block.threads() / kDistanceLanes;
  const int64_t row = tile_row * kSide, columns = tile_column * teams * kSide;
  if (columns + teams * kSide <= row) return;
  const int lane = block.thread() % kDistanceLanes;
  const int64_t column = columns + block.thread() / kDistanceLanes * kSide, last = p.count - 1;
  const Element *a[kSide], *b[kSide];
  CACOVID_UNROLL
  for (int i = 0; i < kSide; ++i) {
    a[i] = p.rows + min64(row + i, last) * p.width;
    b[i] = p.rows + min64(column + i, last) * p.width;
  }
  const int64_t whole = p.width / kDistanceLanes * kDistanceLanes;
  double sums[kSums] = {};
  for (int64_t d = lane; d < whole; d += kDistanceLanes) {
    double x[kSide], y[kSide];
    CACOVID_UNROLL
    for (int i = 0; i < kSide; ++i) {
      x[i] = as_double(a[i][d]);
      y[i] = as_double(b[i][d]);
    }
    CACOVID_UNROLL
    for (int q = 0; q < kSums; ++q) sums[q] += squared(x[q / kSide] - y[q % kSide]);
  }
  CACOVID_UNROLL
  for (int q = 0; q < kSums; ++q) {
    const int owner = q % kDistanceLanes;
    double sum = team_sum(block, sums[q], owner);
    const int64_t i = row + q / kSide, j = column + q % kSide;
    if (lane != owner || i > last || j > last || j < i) continue;
    const Element *left = a[q / kSide], *right = b[q % kSide];
    for (int64_t d = whole; d < p.width; ++d)
      sum += squared(as_double(left[d]) - as_double(right[d]));
    p.distances[i * p.count + j] = sum;
    p.distances[j * p.count + i] = sum;
  }
}

// The sum of a row's smallest distances, added in ascending order, and its largest.
template <class Block, class Element>
CACOVID_HD void spread_block(Block& block, const DensityPeaks<Element>& p, int64_t row) {
  constexpr int64_t kMost = INT64_MAX;
  const double* distances = p.distances + row * p.count;
  int64_t largest = 0;
  for (int64_t j = block.thread(); j < p.count; j += block.threads()) {
    largest = max64(largest, distance_key(distances[j]));
  }
  largest = block_max(block, largest);
  double sum = 0.0;
  Best before{-1, 0};  // the one that was added last
  for (int64_t added = 0; added < p.near; ++added) {
    Best mine{-kMost, 0};  // smallest first: keys with their sign turned
    for (int64_t j = block.thread(); j < p.count; j += block.threads()) {
      const int64_t key = distance_key(distances[j]);
      const bool follows = key > before.key || (key == before.key && j > before.index);
      if (follows) mine = better(mine, Best{-key, j});
    }
    const Best found = block_best(block, mine);
    before = Best{-found.key, found.index};
    sum += bit_cast<double>(before.key);
  }
  if (block.thread() == 0) {
    p.spread[row] = sum;
    p.largest[row] = bit_cast<double>(largest);
  }
}

// Density times separation of one row, from all rows' spreads.
template <class Block, class Element>
CACOVID_HD void value_block(Block& block, const DensityPeaks<Element>& p, int64_t row) {
  const double* distances = p.distances + row * p.count;
  const double own = p.spread[row];
  int64_t nearest = -INT64_MAX, largest = 0;  // of a denser row, with its sign turned; of all
  for (int64_t j = block.thread(); j < p.count; j += block.threads()) {
    if (p.spread[j] < own) nearest = max64(nearest, -distance_key(distances[j]));
    largest = max64(largest, distance_key(p.largest[j]));
  }
  nearest = block_max(block, nearest);
  largest = block_max(block, largest);
  if (block.thread() != 0) return;
  const int64_t key = nearest == -INT64_MAX ? largest : -nearest;
  p.value[row] = peak_value(own, bit_cast<double>(key), p.near, p.width);
}

// Whether the entries of one tile of rows are among the k largest values, ties to the lowest index.
//
// A value takes two numbers of the group's memory: as many rows at a time as half its threads.
template <class Block>
CACOVID_HD void choose_values_block(Block& block, const PeakValue* values, int64_t count, int64_t k,
                                    int64_t tile, bool* chosen) {
  int64_t* shared = block.shared();
  const int64_t half = block.threads() / 2;
  const int64_t i = tile * block.threads() + block.thread();
  const PeakValue mine = i < count ? values[i] : PeakValue{0.0, 0.0};
  int64_t rank = 0;
  for (int64_t begin = 0; begin < count; begin += half) {
    const int64_t j = begin + block.thread();
    if (block.thread() < half && j < count) {
      shared[block.thread()] = bit_cast<int64_t>(values[j].exponent);
      shared[half + block.thread()] = bit_cast<int64_t>(values[j].mantissa);
    }
    block.sync();
    const int64_t size = min64(half, count - begin);
    for (int64_t s = 0; s < size; ++s) {
      const PeakValue other{bit_cast<double>(shared[s]), bit_cast<double>(shared[half + s])};
      if (is_above(other, mine) || (!is_above(mine, other) && begin + s < i)) ++rank;
    }
    block.sync();
  }
  if (i < count) chosen[i] = rank < k;
}

}  // namespace cacovid
