// What this machine can do, asked of the machine itself. No torch, no CUDA toolkit.
#pragma once

#include <string>
#include <vector>

namespace cacovid::host {

// Instruction sets that the ops care about and this processor and its operating system offer.
std::vector<std::string> cpu_features();

struct Gpu {
  std::string name;
  int major = 0;  // compute capability
  int minor = 0;
  int multiprocessors = 0;
  unsigned long long bytes = 0;
};

struct Driver {
  int version = 0;      // e.g. 13000 for CUDA 13.0; 0 without a driver
  std::string problem;  // why there are no devices; empty where there are
  std::vector<Gpu> gpus;
};

// Asks the NVIDIA driver library directly; where it is absent, `problem` says so.
Driver cuda_driver();

}  // namespace cacovid::host
