// What select_tokens and select_and_gather share: one launch for all frames of up to 32 videos.
#pragma once

#include <algorithm>
#include <optional>

#include "../common/plans.h"
#include "cacovid/gather.cuh"
#include "cacovid/select_block.h"
#include "launch.h"

namespace cacovid {

constexpr int kSelectThreads = 256;

using SelectBatch = Batch<SelectVideo, 32>;

// Every block works out its video's quotas for itself, in shared memory: a second launch, or a
// wait for other blocks, takes longer than up to 4,096 frame scores do.
template <class Vector>
__global__ void __launch_bounds__(kSelectThreads, 2)
    select_kernel(const float* token_scores, const float* frame_scores,
                  const __grid_constant__ SelectBatch batch, int64_t list_begin,
                  const __grid_constant__ KeptRows<Vector> to) {
  extern __shared__ int64_t scratch[];  // quotas [t], list [n]
  __shared__ int64_t memory[kSelectThreads];
  CudaBlock<kSelectThreads> block(memory);
  int64_t frame = blockIdx.x;
  const SelectVideo& video = batch.items[number_of_video(batch, frame)];
  check_values(token_scores, video.first_token + frame * video.plan.tokens, video.plan.tokens, true,
               "token_scores");
  if (frame_scores != nullptr) {
    check_values(frame_scores, video.first_frame, video.plan.frames, false, "frame_scores");
  }
  select_frame_block(block, token_scores, frame_scores, video, frame, static_cast<int>(blockIdx.y),
                     static_cast<int>(gridDim.y), false, scratch,
                     reinterpret_cast<int32_t*>(scratch + list_begin), to);
}

// For videos whose quotas or frames do not fit into shared memory: quotas once, then the frames.
static __global__ void __launch_bounds__(kSelectThreads, 1)
    quotas_kernel(const float* frame_scores, const __grid_constant__ SelectVideo video,
                  int64_t* quotas) {
  __shared__ int64_t memory[kSelectThreads];
  CudaBlock<kSelectThreads> block(memory);
  if (frame_scores != nullptr) {
    check_values(frame_scores, video.first_frame, video.plan.frames, false, "frame_scores");
    frame_scores += video.first_frame;
  }
  video_quotas_block(block, frame_scores, video.plan, quotas);
}

template <class Vector>
__global__ void __launch_bounds__(kSelectThreads, 2)
    large_frames_kernel(const float* token_scores, const __grid_constant__ SelectVideo video,
                        int64_t* quotas, int32_t* lists,
                        const __grid_constant__ KeptRows<Vector> to) {
  __shared__ int64_t memory[kSelectThreads];
  CudaBlock<kSelectThreads> block(memory);
  const int64_t frame = blockIdx.x;
  const int64_t begin = frame * video.plan.tokens;
  check_values(token_scores, video.first_token + begin, video.plan.tokens, true, "token_scores");
  select_frame_block(block, token_scores, nullptr, video, frame, 0, 1, true, quotas, lists + begin,
                     to);
}

// What is given and wanted; rows and positions are left out by a size of 0.
struct Selection {
  const float* token_scores;
  const float* frame_scores;
  std::vector<SelectPlan> plans;
  SelectSizes sizes;
  int64_t* keep;
  const void* rows;
  void* kept_rows;
  int64_t row_bytes;
  const int64_t* positions;
  int64_t* kept_positions;
  int64_t axes;
};

template <class Vector>
void launch_selection(const Selection& s, const Tensor& like, cudaStream_t stream) {
  const int64_t vectors = s.row_bytes / static_cast<int64_t>(sizeof(Vector));
  int width = 1;  // a warp for a row, unless rows are short
  while (width < 32 && width < vectors) width *= 2;
  const KeptRows<Vector> to{s.keep,
                            static_cast<const Vector*>(s.rows),
                            static_cast<Vector*>(s.kept_rows),
                            vectors,
                            s.positions,
                            s.kept_positions,
                            s.axes,
                            s.sizes.tokens,
                            s.sizes.kept,
                            width};
  SelectBatch batch{};
  int count = 0;
  int64_t frames = 0, longest = 0, widest = 0;  // of the batch
  const auto launch_batch = [&] {
    if (count == 0) return;
    // Without rows there is too little to share.
    const int64_t splits = vectors == 0 ? 1 : std::clamp<int64_t>(kWantedBlocks / frames, 1, 8);
    const dim3 blocks(static_cast<unsigned>(frames), static_cast<unsigned>(splits));
    const size_t bytes = 8 * longest + 4 * widest;
    select_kernel<Vector><<<blocks, kSelectThreads, bytes, stream>>>(s.token_scores, s.frame_scores,
                                                                     batch, longest, to);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
    count = 0;
    frames = longest = widest = 0;
  };
  SelectVideo video{};
  for (const SelectPlan& plan : s.plans) {
    video.plan = plan;
    const int64_t bytes = 8 * std::max(longest, plan.frames) + 4 * std::max(widest, plan.tokens);
    const bool large = 8 * plan.frames + 4 * plan.tokens > kSharedOfALaunch;
    if (count == SelectBatch::kSize || bytes > kSharedOfALaunch) launch_batch();
    if (large) {
      Tensor quotas = torch::stable::new_empty(like, {plan.frames}, ScalarType::Long);
      Tensor lists = torch::stable::new_empty(like, {plan.frames * plan.tokens}, ScalarType::Int);
      quotas_kernel<<<1, kSelectThreads, 0, stream>>>(s.frame_scores, video,
                                                      quotas.mutable_data_ptr<int64_t>());
      STD_CUDA_KERNEL_LAUNCH_CHECK();
      large_frames_kernel<Vector>
          <<<static_cast<unsigned>(plan.frames), kSelectThreads, 0, stream>>>(
              s.token_scores, video, quotas.mutable_data_ptr<int64_t>(),
              lists.mutable_data_ptr<int32_t>(), to);
      STD_CUDA_KERNEL_LAUNCH_CHECK();
    } else {
      batch.items[count++] = video;
      frames += plan.frames;
      longest = std::max(longest, plan.frames);
      widest = std::max(widest, plan.tokens);
    }
    video.first_token += plan.frames * plan.tokens;
    video.first_frame += plan.frames;
    video.first_kept += plan.total;
  }
  launch_batch();
}

// The checked inputs, contiguous; they must live until the launch.
struct SelectionInputs {
  Tensor tokens;
  std::optional<Tensor> frames;
  Tensor keep;
};

inline Selection prepare_selection(const Tensor& token_scores,
                                   const std::optional<Tensor>& frame_scores,
                                   const std::vector<int64_t>& plan_fields,
                                   const std::vector<double>& clips, SelectionInputs& inputs) {
  Selection s{};
  s.plans = unpack_select(plan_fields, clips);
  s.sizes = sizes_of(s.plans);
  inputs.tokens = contiguous_scores(token_scores, token_scores, s.sizes.tokens, "token_scores");
  s.token_scores = inputs.tokens.const_data_ptr<float>();
  if (frame_scores.has_value()) {
    inputs.frames = contiguous_scores(*frame_scores, token_scores, s.sizes.frames, "frame_scores");
    s.frame_scores = inputs.frames->const_data_ptr<float>();
  }
  inputs.keep = torch::stable::new_empty(inputs.tokens, {s.sizes.kept}, ScalarType::Long);
  s.keep = inputs.keep.mutable_data_ptr<int64_t>();
  return s;
}

}  // namespace cacovid
