// Farthest-point selection by groups of threads: k passes over the rows with a running minimum, all
// distances in float64 in the order of csrc/cpu/distances.cpp, so that no decision can differ.
//
// A group knows nothing of the others within a pass. It leaves its best row; the next pass begins
// with every group finding the best of those, so a pass is one launch, and so is the next.
#pragma once

#include "cacovid/distances_block.h"

namespace cacovid {

template <class Element>
struct FarthestPoint {
  const Element* rows;  // [count, width]
  int64_t count;
  int64_t width;
  int64_t groups;   // of a pass
  double* pieces;   // [sums, width], of kRowsOfASum rows each
  double* total;    // [width]
  double* nearest;  // [count], squared distance to the nearest chosen row; -1: chosen
  Best* best;       // [2, groups]: a pass reads one half and writes the other

  CACOVID_HD int64_t sums() const { return (count + kRowsOfASum - 1) / kRowsOfASum; }
};

// The sum of up to kRowsOfASum rows, in order, of one column.
template <class Element>
CACOVID_HD void sum_piece(const FarthestPoint<Element>& f, int64_t piece, int64_t column) {
  const int64_t begin = piece * kRowsOfASum, end = min64(begin + kRowsOfASum, f.count);
  double sum = 0.0;
  CACOVID_UNROLL_8
  for (int64_t i = begin; i < end; ++i) sum += as_double(f.rows[i * f.width + column]);
  f.pieces[piece * f.width + column] = sum;
}

// The sum of all pieces of one column, in order.
template <class Element>
CACOVID_HD void sum_pieces(const FarthestPoint<Element>& f, int64_t column) {
  double sum = 0.0;
  CACOVID_UNROLL_8
  for (int64_t p = 0; p < f.sums(); ++p) sum += f.pieces[p * f.width + column];
  f.total[column] = sum;
}

// The best row of all groups of the pass before.
template <class Block, class Element>
CACOVID_HD int64_t chosen_row(Block& block, const FarthestPoint<Element>& f, int64_t pass) {
  Best mine{-1, 0};
  for (int64_t g = block.thread(); g < f.groups; g += block.threads()) {
    mine = better(mine, f.best[(pass % 2) * f.groups + g]);
  }
  return block_best(block, mine).index;
}

// Pass 0 measures the rows' distances from their mean (the number of rows times as far from their
// sum, which needs no quotient); pass p takes the best row of pass p - 1 and measures from that.
template <class Block, class Element>
CACOVID_HD void farthest_pass_block(Block& block, const FarthestPoint<Element>& f, int64_t pass,
                                    int64_t group) {
  const int64_t teams = block.threads() / kDistanceLanes;
  const int64_t chosen = pass == 0 ? -1 : chosen_row(block, f, pass - 1);
  Best mine{-1, 0};
  for (int64_t tile = group * teams; tile < f.count; tile += f.groups * teams) {
    const int64_t i = tile + block.thread() / kDistanceLanes;
    const Element* row = f.rows + min64(i, f.count - 1) * f.width;
    const double distance =
        pass == 0 ? team_distance(block, row, static_cast<double>(f.count), f.total, f.width)
                  : team_distance(block, row, 1.0, f.rows + chosen * f.width, f.width);
    if (i >= f.count || block.thread() % kDistanceLanes != 0) continue;
    if (pass == 0) {
      f.nearest[i] = bit_cast<double>(0x7FF0000000000000u);
      mine = better(mine, Best{distance_key(distance), i});
      continue;
    }
    double near = f.nearest[i];
    if (i == chosen) {
      near = -1.0;
    } else if (distance < near) {
      near = distance;
    }
    f.nearest[i] = near;
    if (near >= 0.0) mine = better(mine, Best{distance_key(near), i});
  }
  const Best best = block_best(block, mine);
  if (block.thread() == 0) f.best[(pass % 2) * f.groups + group] = best;
}

// After passes 0 to k - 1: the chosen rows, ascending, by one group.
template <class Block, class Element>
CACOVID_HD void farthest_keep_block(Block& block, const FarthestPoint<Element>& f, int64_t k,
                                    int64_t* keep) {
  const int64_t last = chosen_row(block, f, k - 1);
  compact_block(block, f.count, [&](int64_t i) { return i == last || f.nearest[i] < 0.0; }, keep);
}

}  // namespace cacovid
