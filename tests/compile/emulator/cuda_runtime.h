// A device of one multiprocessor on the host, in the place of CUDA's own header: blocks run one
// after another, and the threads of a block take turns between barriers. What the launches, grids
// and indices of csrc/cuda compute is tested so without a GPU; speed, races between blocks and
// the memory model are not. emulated_cuda.py turns `<<<...>>>` into calls of emulated::launch.
//
// The turn goes up and down in change, so that a missing barrier shows, one way or the other; a
// barrier that some threads do not reach ends the process.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <torch/csrc/stable/macros.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static
#undef STD_CUDA_CHECK
#define STD_CUDA_CHECK(call) (void)(call)

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
using cudaStream_t = void*;
using cudaError_t = int;
constexpr cudaError_t cudaSuccess = 0;
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

namespace emulated {

enum class State { kReady, kBlock, kWarp, kDone };  // what a thread waits for

struct Thread {
  ucontext_t context;  // to begin with
  jmp_buf place;       // where it waits; unlike contexts, jumps cost no call of the system
  bool begun = false;
  std::vector<char> stack = std::vector<char>(1 << 16);
  dim3 index;
  State state = State::kReady;
  uint64_t given = 0;  // to the other threads at a barrier
};

struct Device {
  jmp_buf scheduler;
  std::vector<Thread> threads;
  std::vector<int64_t> shared;
  dim3 grid, block, size;  // size: of a block
  int running = 0;
  std::function<void()> kernel;
  int64_t launches = 0;

  Thread& now() { return threads[running]; }
};
inline Device device;

[[noreturn]] inline void stop(const char* reason) {
  std::fprintf(stderr, "emulated device: %s\n", reason);
  std::abort();
}

inline void wait(State state) {
  device.now().state = state;
  if (_setjmp(device.now().place) == 0) _longjmp(device.scheduler, 1);
}

inline void run_thread() {
  device.kernel();
  wait(State::kDone);
}

// Gives a thread its turn, until it waits.
inline void turn_of(Thread& thread) {
  if (_setjmp(device.scheduler) != 0) return;
  if (thread.begun) _longjmp(thread.place, 1);
  thread.begun = true;
  setcontext(&thread.context);
}

// Whether all of `count` threads from `first` on wait for `state`; those that ended count as there.
inline bool all_wait(int first, int count, State state) {
  bool any = false;
  for (int i = first; i < first + count; ++i) {
    const State own = device.threads[i].state;
    if (own != state && own != State::kDone) return false;
    any = any || own == state;
  }
  return any;
}

inline void release(int first, int count) {
  for (int i = first; i < first + count; ++i) {
    if (device.threads[i].state != State::kDone) device.threads[i].state = State::kReady;
  }
}

inline void run_block(int count) {
  for (int i = 0; i < count; ++i) {
    Thread& thread = device.threads[i];
    const unsigned number = static_cast<unsigned>(i);
    thread.index = dim3(number % device.size.x, number / device.size.x % device.size.y,
                        number / device.size.x / device.size.y);
    thread.state = State::kReady;
    thread.begun = false;
    getcontext(&thread.context);
    thread.context.uc_stack.ss_sp = thread.stack.data();
    thread.context.uc_stack.ss_size = thread.stack.size();
    thread.context.uc_link = nullptr;
    makecontext(&thread.context, run_thread, 0);
  }
  for (bool up = true;; up = !up) {
    bool done = true;
    for (int i = 0; i < count; ++i) {
      device.running = up ? i : count - 1 - i;
      if (device.now().state == State::kReady) turn_of(device.now());
      done = done && device.now().state == State::kDone;
    }
    if (done) return;
    bool going = false;
    for (int first = 0; first < count; first += 32) {
      const int lanes = count - first < 32 ? count - first : 32;
      if (!all_wait(first, lanes, State::kWarp)) continue;
      for (int i = first; i < first + lanes; ++i) {
        if (device.threads[i].state == State::kDone) stop("a lane ended before its warp's barrier");
      }
      release(first, lanes);
      going = true;
    }
    if (!going && all_wait(0, count, State::kBlock)) {
      release(0, count);
      going = true;
    }
    if (!going) stop("some threads missed a barrier");
  }
}

inline void launch(dim3 grid, dim3 size, int64_t bytes, std::function<void()> kernel) {
  const int64_t count = int64_t{size.x} * size.y * size.z;
  if (count < 1 || count > 1024) stop("a block has 1 to 1,024 threads");
  if (grid.x < 1 || grid.x > 0x7FFFFFFFu || grid.y < 1 || grid.y > 65535 || grid.z != 1) {
    stop("a grid has 1 to 2**31 - 1 by 1 to 65,535 blocks");
  }
  // What a kernel declares itself comes on top: a word for each thread.
  if (bytes + 8 * count > 48 * 1024) stop("a launch takes more than 48 KiB of shared memory");
  if (static_cast<int64_t>(device.threads.size()) < count) device.threads.resize(count);
  device.grid = grid;
  device.size = size;
  device.kernel = std::move(kernel);
  ++device.launches;
  for (unsigned y = 0; y < grid.y; ++y) {
    for (unsigned x = 0; x < grid.x; ++x) {
      device.block = dim3(x, y, 0);
      device.shared.assign((bytes + 7) / 8, 0x5A5A5A5A5A5A5A5A);  // nothing is zero by itself
      run_block(static_cast<int>(count));
    }
  }
}

inline int64_t* dynamic_shared() { return device.shared.data(); }

// What lane `lane` of this thread's warp gave.
inline uint64_t given_by(int lane) { return device.threads[device.running / 32 * 32 + lane].given; }

inline void give_to_warp(uint64_t value) {
  device.now().given = value;
  wait(State::kWarp);
}

}  // namespace emulated

#define threadIdx (emulated::device.now().index)
#define blockIdx (emulated::device.block)
#define blockDim (emulated::device.size)
#define gridDim (emulated::device.grid)

inline void __syncthreads() { emulated::wait(emulated::State::kBlock); }
inline void __syncwarp() { emulated::wait(emulated::State::kWarp); }

inline int __syncthreads_count(int yes) {
  emulated::device.now().given = yes != 0;
  __syncthreads();
  int count = 0;
  const dim3& size = emulated::device.size;
  for (unsigned i = 0; i < size.x * size.y * size.z; ++i) {
    count += static_cast<int>(emulated::device.threads[i].given);
  }
  __syncthreads();
  return count;
}

inline unsigned __ballot_sync(unsigned, int yes) {
  emulated::give_to_warp(yes != 0);
  unsigned votes = 0;
  for (int lane = 0; lane < 32; ++lane) {
    votes |= static_cast<unsigned>(emulated::given_by(lane)) << lane;
  }
  __syncwarp();
  return votes;
}

template <class Value>
Value __shfl_xor_sync(unsigned, Value value, int mask) {
  static_assert(sizeof(Value) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(value));
  emulated::give_to_warp(bits);
  bits = emulated::given_by((emulated::device.running % 32) ^ mask);
  __syncwarp();
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

inline int __popc(unsigned bits) { return __builtin_popcount(bits); }
[[noreturn]] inline void __trap() { emulated::stop("trap"); }
