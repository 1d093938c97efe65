// torch.ops.cacovid.gather on CUDA devices.
#include "cacovid/gather.cuh"
#include "launch.h"

namespace cacovid {
namespace {

Tensor gather_cuda(const Tensor& rows, const Tensor& keep) {
  check_gather(rows, keep);
  const torch::stable::accelerator::DeviceGuard guard(rows.get_device_index());
  const Tensor source = torch::stable::contiguous(rows);
  const Tensor index = torch::stable::contiguous(keep);
  const int64_t count = index.numel();
  Tensor out = torch::stable::new_empty(source, {count, source.size(1)});
  STD_CUDA_CHECK(launch_gather(source.const_data_ptr(), index.const_data_ptr<int64_t>(),
                               out.mutable_data_ptr(), count, source.size(0),
                               source.size(1) * static_cast<int64_t>(source.element_size()),
                               current_stream(source)));
  return out;
}

}  // namespace
}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CUDA, m) { m.impl("gather", TORCH_BOX(&cacovid::gather_cuda)); }
