// What PyTorch's CUDA library gives the ops, for the emulated device.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include "cuda_runtime.h"

extern "C" AOTITorchError aoti_torch_get_current_cuda_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}

extern "C" AOTITorchError aoti_torch_create_device_guard(int32_t, DeviceGuardHandle* guard) {
  *guard = nullptr;
  return 0;
}

extern "C" AOTITorchError aoti_torch_delete_device_guard(DeviceGuardHandle) { return 0; }

// Launches since the start.
extern "C" int64_t emulated_launches() { return emulated::device.launches; }
