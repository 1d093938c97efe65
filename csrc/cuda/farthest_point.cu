// torch.ops.cacovid.farthest_point on CUDA devices: a launch for each row that is taken.
//
// A pass reads all rows: 90 MB of float32 at N = 6,272 and D = 3,584, some 20 us, beside which the
// 2 us between two launches (nodes of a graph) are little. One persistent kernel would replace
// them by barriers over the device of about 1 us, but must be alone on it to be safe. Few rows are
// another matter: there one block does all passes in one launch.
#include <algorithm>

#include "cacovid/farthest_point_block.h"
#include "rows.cuh"

namespace cacovid {
namespace {

constexpr int kThreads = 128;        // 16 rows at a time
constexpr int kLargeThreads = 1024;  // of a block that is alone
constexpr int64_t kMostGroups = 1056;
constexpr int64_t kFewElements = int64_t{1} << 18;  // a block reads them in about 3 us

template <class Element>
__global__ void __launch_bounds__(kThreads) pieces_kernel(FarthestPoint<Element> f) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column < f.width) sum_piece(f, blockIdx.y, column);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) total_kernel(FarthestPoint<Element> f) {
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (column >= f.width) return;
  sum_pieces(f, column);
  check_finite(f.total[column]);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) pass_kernel(FarthestPoint<Element> f, int64_t pass) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  farthest_pass_block(block, f, pass, blockIdx.x);
}

template <class Element>
__global__ void __launch_bounds__(kLargeThreads)
    passes_kernel(FarthestPoint<Element> f, int64_t first, int64_t passes, int64_t k,
                  int64_t* keep) {
  __shared__ int64_t memory[kLargeThreads];
  CudaBlock<kLargeThreads> block(memory);
  for (int64_t pass = first; pass < passes; ++pass) {
    farthest_pass_block(block, f, pass, 0);
    block.sync();
  }
  farthest_keep_block(block, f, k, keep);
}

template <class Element>
void launch(const Element* rows, const Tensor& like, int64_t k, int64_t* keep,
            cudaStream_t stream) {
  FarthestPoint<Element> f{};
  f.rows = rows;
  f.count = like.size(0);
  f.width = like.size(1);
  const bool few = f.count * f.width <= kFewElements;
  constexpr int64_t kRows = kThreads / kDistanceLanes;
  f.groups = few ? 1 : std::min(kMostGroups, (f.count + kRows - 1) / kRows);
  if (f.sums() > 65535) fail("rows are ", f.count, "; expected 16,776,960 at most");
  Tensor doubles =
      torch::stable::new_empty(like, {(f.sums() + 1) * f.width + f.count}, ScalarType::Double);
  Tensor best = torch::stable::new_empty(like, {4 * f.groups}, ScalarType::Long);
  f.pieces = doubles.mutable_data_ptr<double>();
  f.total = f.pieces + f.sums() * f.width;
  f.nearest = f.total + f.width;
  static_assert(sizeof(Best) == 2 * sizeof(int64_t));
  f.best = reinterpret_cast<Best*>(best.mutable_data_ptr<int64_t>());
  const unsigned across = static_cast<unsigned>((f.width + kThreads - 1) / kThreads);
  if (across > 0) {
    const dim3 blocks(across, static_cast<unsigned>(f.sums()));
    pieces_kernel<<<blocks, kThreads, 0, stream>>>(f);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    total_kernel<<<across, kThreads, 0, stream>>>(f);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  for (int64_t pass = 0; !few && pass < k; ++pass) {
    pass_kernel<<<static_cast<unsigned>(f.groups), kThreads, 0, stream>>>(f, pass);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  passes_kernel<<<1, kLargeThreads, 0, stream>>>(f, few ? 0 : k, k, k, keep);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor farthest_point_cuda(const Tensor& rows, int64_t k) {
  check_row_count(rows, k);
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const Tensor x = torch::stable::contiguous(rows);
  Tensor keep = torch::stable::new_empty(x, {k}, ScalarType::Long);
  with_elements(x, [&](const auto* data) {
    launch(data, x, k, keep.mutable_data_ptr<int64_t>(), current_stream(x));
  });
  return keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("farthest_point", TORCH_BOX(&cacovid::farthest_point_cuda));
}
