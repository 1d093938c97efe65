// torch.ops.cacovid.gather on CUDA devices.
#include "cacovid/gather.cuh"
#include "checks.h"

namespace cacovid {
namespace {

Tensor gather_cuda(const Tensor& rows, const Tensor& keep) {
  if (!rows.is_cuda() || !keep.is_cuda() || rows.get_device() != keep.get_device()) {
    fail("rows and keep must be on one CUDA device");
  }
  if (rows.dim() != 2) fail("rows has ", rows.dim(), " dimensions; expected [S, D]");
  if (keep.dim() != 1 || keep.scalar_type() != ScalarType::Long) {
    fail("keep must be int64 [K], as select_tokens returns it");
  }
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
