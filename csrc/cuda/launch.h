// What the CUDA ops share: the stream, the group of threads, the check of values.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>
#include <cstdio>

#include "../common/checks.h"

namespace cacovid {

// torch's current stream on the tensor's device.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

// The `Block` of cacovid/block.h: one thread block of kThreads threads.
template <int kThreads>
class CudaBlock {
 public:
  __device__ explicit CudaBlock(int64_t* memory) : memory_(memory) {}
  __device__ int thread() const { return static_cast<int>(threadIdx.x); }
  __device__ int threads() const { return kThreads; }
  __device__ void sync() { __syncthreads(); }
  __device__ int64_t* shared() { return memory_; }

 private:
  int64_t* memory_;
};

// Stops the device at a NaN (and at an infinity, unless allowed): nothing that follows in the
// stream can use a broken selection, and the next synchronisation raises. Reading a flag back here
// would wait for the device on every call.
static __global__ void check_values_kernel(const float* __restrict__ values, int64_t count,
                                           bool allow_infinite, bool frames) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= count) return;
  const float value = values[i];
  if (!isnan(value) && (allow_infinite || !isinf(value))) return;
  printf("cacovid: %s has %f at %lld; the policy or its input is broken, nothing was selected\n",
         frames ? "frame_scores" : "token_scores", value, static_cast<long long>(i));
  __trap();
}

inline void check_values(const float* values, int64_t count, bool allow_infinite, bool frames,
                         cudaStream_t stream) {
  constexpr int64_t kThreads = 256;
  const unsigned blocks = static_cast<unsigned>((count + kThreads - 1) / kThreads);
  check_values_kernel<<<blocks, kThreads, 0, stream>>>(values, count, allow_infinite, frames);
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace cacovid
