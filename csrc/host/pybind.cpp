// `cacovid._host`: how the compiled part was built and what this machine offers; nothing else.
// Nothing here touches a tensor, so it needs no torch, and all of it may be absent.

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "capabilities.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["version"] = CACOVID_VERSION;
  info["compiler"] = CACOVID_COMPILER;
  info["build_type"] = CACOVID_BUILD_TYPE;
  info["cpu_ops"] = static_cast<bool>(CACOVID_BUILT_CPU);
  info["cuda_ops"] = static_cast<bool>(CACOVID_BUILT_CUDA);
  info["torch"] = CACOVID_TORCH_VERSION;
  info["cuda_option"] = CACOVID_CUDA_OPTION;
  info["nvcc"] = CACOVID_CUDA_COMPILER;
  info["cuda_architectures"] = CACOVID_CUDA_ARCHITECTURES;
  return info;
}

py::dict gpu_capabilities() {
  const cacovid::host::Driver driver = cacovid::host::cuda_driver();
  py::list devices;
  for (const cacovid::host::Gpu& gpu : driver.gpus) {
    py::dict device;
    device["name"] = gpu.name;
    device["capability"] = py::make_tuple(gpu.major, gpu.minor);
    device["multiprocessors"] = gpu.multiprocessors;
    device["bytes"] = gpu.bytes;
    devices.append(device);
  }
  py::dict result;
  result["driver"] = driver.version;
  result["problem"] = driver.problem;
  result["devices"] = devices;
  return result;
}

}  // namespace

PYBIND11_MODULE(_host, m) {
  m.doc() = "Build information and capabilities of the machine.";
  m.def("build_info", &build_info,
        "How the compiled part was built: compiler, torch, CUDA compiler and architectures.");
  m.def("cpu_features", &cacovid::host::cpu_features,
        "Names of the instruction sets that the ops care about and this processor offers.");
  m.def("gpu_capabilities", &gpu_capabilities,
        "What the NVIDIA driver reports: its version, its devices, or why there are none.");
}
