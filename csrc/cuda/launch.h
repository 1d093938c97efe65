// What the CUDA ops share: the stream, the group of threads, the check of values.
#pragma once

#include <cuda_runtime.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include <cstdint>
#include <cstdio>

#include "../common/checks.h"
#include "cacovid/block.h"

namespace cacovid {

// torch's current stream on the tensor's device.
inline cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
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
  __device__ int count(bool yes) { return __syncthreads_count(yes); }
  __device__ Scan count_before(bool yes) {
    const unsigned votes = __ballot_sync(~0u, yes), lane = threadIdx.x % 32,
                   warp = threadIdx.x / 32;
    if (lane == 0) memory_[warp] = __popc(votes);
    sync();
    Scan scan{__popc(votes & ((1u << lane) - 1u)), 0};
    for (unsigned w = 0; w < kThreads / 32; ++w) {
      if (w < warp) scan.before += memory_[w];
      scan.total += memory_[w];
    }
    sync();
    return scan;
  }

 private:
  int64_t* memory_;
};

// A warp as a `Block`, for work that other warps of the block need not wait for.
class CudaWarp {
 public:
  // memory: [32], of this warp.
  __device__ explicit CudaWarp(int64_t* memory) : memory_(memory) {}
  __device__ int thread() const { return static_cast<int>(threadIdx.x % 32); }
  __device__ int threads() const { return 32; }
  __device__ void sync() { __syncwarp(); }
  __device__ int64_t* shared() { return memory_; }
  __device__ int count(bool yes) { return __popc(__ballot_sync(~0u, yes)); }
  __device__ Scan count_before(bool yes) {
    const unsigned votes = __ballot_sync(~0u, yes);
    return Scan{__popc(votes & ((1u << thread()) - 1u)), __popc(votes)};
  }

 private:
  int64_t* memory_;
};

// The reductions of block.h by warps: the same integers with two barriers.
template <int kThreads, class Join>
__device__ int64_t reduce(CudaBlock<kThreads>& block, int64_t value, int64_t neutral,
                          const Join& join) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  int64_t* shared = block.shared();
  const int lane = block.thread() % 32;
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  if (lane == 0) shared[block.thread() / 32] = value;
  block.sync();
  value = lane < kThreads / 32 ? shared[lane] : neutral;
  for (int step = 16; step > 0; step /= 2) value = join(value, __shfl_xor_sync(~0u, value, step));
  block.sync();
  return value;
}

template <int kThreads>
__device__ int64_t block_sum(CudaBlock<kThreads>& block, int64_t value) {
  return reduce(block, value, 0, [](int64_t a, int64_t b) { return a + b; });
}

template <int kThreads>
__device__ int64_t block_max(CudaBlock<kThreads>& block, int64_t value) {
  return reduce(block, value, INT64_MIN, [](int64_t a, int64_t b) { return max64(a, b); });
}

// Videos that one launch serves: they travel among the kernel's arguments, so that no table has to
// be copied to the device (and a CUDA graph holds them).
template <class Item, int kMost>
struct Batch {
  static constexpr int kSize = kMost;
  Item items[kMost];
};

// The video whose frame is number `at` of those of a batch; `at` becomes its number in that video.
template <class Video, int kMost>
__device__ inline int number_of_video(const Batch<Video, kMost>& batch, int64_t& at) {
  int v = 0;
  for (; at >= batch.items[v].plan.frames; ++v) at -= batch.items[v].plan.frames;
  return v;
}

// Dynamic shared memory that a launch may take: with the group's own memory below 48 KiB.
constexpr int64_t kSharedOfALaunch = 45056;
constexpr int64_t kWantedBlocks = 264;  // two for each multiprocessor of an H100 or H200

// Stops the device at a NaN (and at an infinity, unless allowed): nothing that follows in the
// stream can use a broken selection, and the next synchronisation raises. Reading a flag back here
// would wait for the device on every call.
__device__ inline void check_value(float value, int64_t index, bool allow_infinite,
                                   const char* name) {
  if (!isnan(value) && (allow_infinite || !isinf(value))) return;
  printf("cacovid: %s has %f at %lld; the policy or its input is broken, nothing was selected\n",
         name, value, static_cast<long long>(index));
  __trap();
}

// check_value of values[begin ... begin + count) by one block.
__device__ inline void check_values(const float* values, int64_t begin, int64_t count,
                                    bool allow_infinite, const char* name) {
  for (int64_t i = threadIdx.x; i < count; i += blockDim.x) {
    check_value(values[begin + i], begin + i, allow_infinite, name);
  }
}

}  // namespace cacovid
