// torch.ops.cacovid.density_peaks on CUDA devices: five launches.
#include <algorithm>

#include "cacovid/density_peaks_block.h"
#include "rows.cuh"

namespace cacovid {
namespace {

constexpr int kThreads = 256;
constexpr int kLargeThreads = 1024;

template <class Element>
__global__ void __launch_bounds__(kThreads) distances_kernel(DensityPeaks<Element> p) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  distances_block(block, p, blockIdx.x, blockIdx.y);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) spread_kernel(DensityPeaks<Element> p) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  check_finite(p.distances[blockIdx.x * (p.count + 1)]);
  spread_block(block, p, blockIdx.x);
}

template <class Element>
__global__ void __launch_bounds__(kThreads) value_kernel(DensityPeaks<Element> p) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  value_block(block, p, blockIdx.x);
}

static __global__ void __launch_bounds__(kThreads)
    choose_kernel(const PeakValue* values, int64_t count, int64_t k, bool* chosen) {
  __shared__ int64_t memory[kThreads];
  CudaBlock<kThreads> block(memory);
  choose_values_block(block, values, count, k, blockIdx.x, chosen);
}

static __global__ void __launch_bounds__(kLargeThreads)
    keep_kernel(const bool* chosen, int64_t count, int64_t* keep) {
  __shared__ int64_t memory[kLargeThreads];
  CudaBlock<kLargeThreads> block(memory);
  compact_block(block, count, [&](int64_t i) { return chosen[i]; }, keep);
}

template <class Element>
void launch(const Element* rows, const Tensor& like, int64_t near, PeakValue* scratch,
            cudaStream_t stream) {
  DensityPeaks<Element> p{};
  p.rows = rows;
  p.count = like.size(0);
  p.width = like.size(1);
  p.near = near;
  p.value = scratch;
  p.spread = reinterpret_cast<double*>(p.value + p.count);
  p.largest = p.spread + p.count;
  p.distances = p.largest + p.count;
  constexpr int64_t kColumns = kThreads / kDistanceLanes * kRowsOfATile;
  const dim3 tiles(static_cast<unsigned>((p.count + kRowsOfATile - 1) / kRowsOfATile),
                   static_cast<unsigned>((p.count + kColumns - 1) / kColumns));
  distances_kernel<<<tiles, kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  spread_kernel<<<static_cast<unsigned>(p.count), kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  value_kernel<<<static_cast<unsigned>(p.count), kThreads, 0, stream>>>(p);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

Tensor density_peaks_cuda(const Tensor& rows, int64_t k, int64_t neighbours) {
  check_row_count(rows, k);
  const int64_t count = rows.size(0);
  check_neighbours(neighbours, count);
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const cudaStream_t stream = current_stream(rows);
  const Tensor x = torch::stable::contiguous(rows);
  Tensor keep = torch::stable::new_empty(x, {k}, ScalarType::Long);
  Tensor chosen = torch::stable::new_empty(x, {count}, ScalarType::Bool);
  Tensor scratch = torch::stable::new_empty(x, {count * (count + 4)}, ScalarType::Double);
  PeakValue* values = reinterpret_cast<PeakValue*>(scratch.mutable_data_ptr<double>());
  with_elements(
      x, [&](const auto* data) { launch(data, x, std::min(neighbours, count), values, stream); });
  bool* flags = chosen.mutable_data_ptr<bool>();
  const unsigned tiles = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  choose_kernel<<<tiles, kThreads, 0, stream>>>(values, count, k, flags);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  keep_kernel<<<1, kLargeThreads, 0, stream>>>(flags, count, keep.mutable_data_ptr<int64_t>());
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return keep;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) {
  m.impl("density_peaks", TORCH_BOX(&cacovid::density_peaks_cuda));
}
