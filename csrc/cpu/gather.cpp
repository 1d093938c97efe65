// torch.ops.cacovid.gather on the CPU.
#include <algorithm>
#include <cstring>

#include "selection.h"

namespace cacovid {

Tensor gather_cpu(const Tensor& rows, const Tensor& keep) {
  check_gather(rows, keep);
  const Tensor source = torch::stable::contiguous(rows);
  const Tensor index = torch::stable::contiguous(keep);
  const int64_t count = index.numel(), length = source.size(0);
  const int64_t* at = index.const_data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i) {
    if (at[i] < 0 || at[i] >= length) {
      fail("keep[", i, "] is ", at[i], "; rows has ", length, " rows");
    }
  }
  Tensor out = torch::stable::new_empty(source, {count, source.size(1)});
  const int64_t bytes = source.size(1) * static_cast<int64_t>(source.element_size());
  const char* from = static_cast<const char*>(source.const_data_ptr());
  char* to = static_cast<char*>(out.mutable_data_ptr());
  // About 64 KiB of copying is worth a task.
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(bytes, 1));
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) std::memcpy(to + i * bytes, from + at[i] * bytes, bytes);
  });
  return out;
}

}  // namespace cacovid

STABLE_TORCH_LIBRARY_IMPL(cacovid, CPU, m) { m.impl("gather", TORCH_BOX(&cacovid::gather_cpu)); }
