// Copies whole rows; raw pointers, sizes and a stream, no torch.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>

namespace cacovid {

// out[i] = rows[keep[i]] for rows of `vectors` elements of type Vector. threadIdx.x runs over a
// row, threadIdx.y over the rows of a block.
template <class Vector>
__global__ void gather_kernel(const Vector* __restrict__ rows, const int64_t* __restrict__ keep,
                              Vector* __restrict__ out, int64_t count, int64_t length,
                              int64_t vectors) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.y;
  for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.y + threadIdx.y; i < count;
       i += stride) {
    const int64_t row = keep[i];
    if (row < 0 || row >= length) __trap();  // as Tensor.index_select stops on a bad index
    const Vector* from = rows + row * vectors;
    Vector* to = out + i * vectors;
#pragma unroll 4
    for (int64_t v = threadIdx.x; v < vectors; v += blockDim.x) to[v] = from[v];
  }
}

template <class Vector>
cudaError_t launch_gather_as(const void* rows, const int64_t* keep, void* out, int64_t count,
                             int64_t length, int64_t row_bytes, cudaStream_t stream) {
  constexpr unsigned kThreads = 256;
  constexpr int64_t kMaxBlocks = 65535;
  const int64_t vectors = row_bytes / static_cast<int64_t>(sizeof(Vector));
  unsigned across = 1;
  while (across < kThreads && across < vectors) across *= 2;
  const dim3 threads(across, kThreads / across);
  const int64_t wanted = (count + threads.y - 1) / threads.y;
  const dim3 blocks(static_cast<unsigned>(wanted < kMaxBlocks ? wanted : kMaxBlocks));
  gather_kernel<Vector><<<blocks, threads, 0, stream>>>(
      static_cast<const Vector*>(rows), keep, static_cast<Vector*>(out), count, length, vectors);
  return cudaGetLastError();
}

// Calls work(element) with the widest element that every row begins at a multiple of.
template <class Work>
auto with_vector(const void* rows, const void* out, int64_t row_bytes, const Work& work) {
  const uint64_t alignment = reinterpret_cast<uint64_t>(rows) | reinterpret_cast<uint64_t>(out) |
                             static_cast<uint64_t>(row_bytes);
  if (alignment % 16 == 0) return work(uint4{});
  if (alignment % 8 == 0) return work(uint64_t{});
  if (alignment % 4 == 0) return work(uint32_t{});
  if (alignment % 2 == 0) return work(uint16_t{});
  return work(uint8_t{});
}

// Gathers `count` of `length` rows of `row_bytes` bytes.
inline cudaError_t launch_gather(const void* rows, const int64_t* keep, void* out, int64_t count,
                                 int64_t length, int64_t row_bytes, cudaStream_t stream) {
  if (count == 0 || row_bytes == 0) return cudaSuccess;
  return with_vector(rows, out, row_bytes, [&](auto vector) {
    return launch_gather_as<decltype(vector)>(rows, keep, out, count, length, row_bytes, stream);
  });
}

}  // namespace cacovid
