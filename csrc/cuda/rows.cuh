// What the ops that compare rows share: the kinds of elements, and what is refused.
#pragma once

#include "cacovid/elements.h"
#include "launch.h"

namespace cacovid {

// Calls work(first element) for rows of float32, bfloat16 or float16.
template <class Work>
void with_elements(const Tensor& rows, const Work& work) {
  const void* data = rows.const_data_ptr();
  switch (rows.scalar_type()) {
    case ScalarType::Float:
      return work(static_cast<const float*>(data));
    case ScalarType::BFloat16:
      return work(static_cast<const Bfloat16*>(data));
    case ScalarType::Half:
      return work(static_cast<const Float16*>(data));
    default:
      fail("rows must be float32, bfloat16 or float16 [M, D]; convert them");
  }
}

// Stops the device where a sum over the rows is not finite: see check_value.
__device__ inline void check_finite(double value) {
  if (isfinite(value)) return;
  printf("cacovid: rows have NaN or infinite values; expected finite features\n");
  __trap();
}

}  // namespace cacovid
