// The CPU forms of two ops, for select_and_gather, which is made of them.
#pragma once

#include <optional>
#include <vector>

#include "../common/checks.h"

namespace cacovid {

Tensor select_tokens_cpu(const Tensor& token_scores, const std::optional<Tensor>& frame_scores,
                         const std::vector<int64_t>& plan_fields, const std::vector<double>& clips);

Tensor gather_cpu(const Tensor& rows, const Tensor& keep);

}  // namespace cacovid
