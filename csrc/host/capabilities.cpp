#include "capabilities.h"

#include <dlfcn.h>

#if defined(__aarch64__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace cacovid::host {

std::vector<std::string> cpu_features() {
  std::vector<std::string> found;
#if defined(__x86_64__)
  __builtin_cpu_init();
  // The builtin takes literals only; it also checks that the operating system saves the registers.
#define CACOVID_ADD_IF(name) \
  if (__builtin_cpu_supports(name)) found.emplace_back(name)
  CACOVID_ADD_IF("sse4.2");
  CACOVID_ADD_IF("avx");
  CACOVID_ADD_IF("fma");
  CACOVID_ADD_IF("avx2");
  CACOVID_ADD_IF("avx512f");
  CACOVID_ADD_IF("avx512bw");
  CACOVID_ADD_IF("avx512vl");
  CACOVID_ADD_IF("avx512vnni");
  CACOVID_ADD_IF("avx512bf16");
#undef CACOVID_ADD_IF
#elif defined(__aarch64__)
  const unsigned long caps = getauxval(AT_HWCAP);
  const unsigned long caps2 = getauxval(AT_HWCAP2);
  if (caps & HWCAP_ASIMD) found.emplace_back("asimd");
  if (caps & HWCAP_ASIMDDP) found.emplace_back("asimddp");
  if (caps & HWCAP_SVE) found.emplace_back("sve");
#if defined(HWCAP2_SVE2)
  if (caps2 & HWCAP2_SVE2) found.emplace_back("sve2");
#endif
#if defined(HWCAP2_BF16)
  if (caps2 & HWCAP2_BF16) found.emplace_back("bf16");
#endif
  (void)caps2;
#endif
  return found;
}

namespace {

// Values of the driver API, which is stable; its header belongs to a toolkit that may be absent.
constexpr int kComputeCapabilityMajor = 75;
constexpr int kComputeCapabilityMinor = 76;
constexpr int kMultiprocessorCount = 16;

template <typename Function>
bool load(void* library, const char* name, Function** function) {
  *function = reinterpret_cast<Function*>(dlsym(library, name));
  return *function != nullptr;
}

}  // namespace

Driver cuda_driver() {
  Driver driver;
  // Never closed: the driver starts threads of its own, and torch keeps it open anyway.
  void* library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
  if (library == nullptr) {
    driver.problem = "no NVIDIA driver (libcuda.so.1 is not found)";
    return driver;
  }
  int (*init)(unsigned) = nullptr;
  int (*version)(int*) = nullptr;
  int (*count_devices)(int*) = nullptr;
  int (*get)(int*, int) = nullptr;
  int (*get_name)(char*, int, int) = nullptr;
  int (*total_bytes)(size_t*, int) = nullptr;
  int (*attribute)(int*, int, int) = nullptr;
  if (!load(library, "cuInit", &init) || !load(library, "cuDriverGetVersion", &version) ||
      !load(library, "cuDeviceGetCount", &count_devices) || !load(library, "cuDeviceGet", &get) ||
      !load(library, "cuDeviceGetName", &get_name) ||
      !load(library, "cuDeviceTotalMem_v2", &total_bytes) ||
      !load(library, "cuDeviceGetAttribute", &attribute)) {
    driver.problem = "libcuda.so.1 lacks a function of the CUDA driver API";
    return driver;
  }
  version(&driver.version);
  int count = 0;
  const int status = init(0);
  if (status != 0 || count_devices(&count) != 0 || count == 0) {
    driver.problem = status != 0 ? "the NVIDIA driver cannot start (cuInit returned " +
                                       std::to_string(status) + ")"
                                 : "the NVIDIA driver sees no device";
    return driver;
  }
  for (int index = 0; index < count; ++index) {
    int device = 0;
    if (get(&device, index) != 0) continue;
    Gpu gpu;
    char name[256] = "";
    size_t bytes = 0;
    get_name(name, sizeof(name) - 1, device);
    total_bytes(&bytes, device);
    attribute(&gpu.major, kComputeCapabilityMajor, device);
    attribute(&gpu.minor, kComputeCapabilityMinor, device);
    attribute(&gpu.multiprocessors, kMultiprocessorCount, device);
    gpu.name = name;
    gpu.bytes = bytes;
    driver.gpus.push_back(gpu);
  }
  return driver;
}

}  // namespace cacovid::host
