// The schemas' flat plans as structures. A plan is made on the host, once, by the reference's
// `select_plan` and `ocss_plan`; what could make a kernel read or write out of bounds is refused.
#pragma once

#include <limits>
#include <vector>

#include "cacovid/bernoulli.h"
#include "cacovid/frame_sample.h"
#include "cacovid/ocss.h"
#include "cacovid/select.h"
#include "checks.h"

namespace cacovid {

constexpr size_t kSelectFields = 6;
constexpr size_t kOcssFields = 5;
constexpr size_t kFrameFields = 4;

inline std::vector<SelectPlan> unpack_select(const std::vector<int64_t>& fields,
                                             const std::vector<double>& clips) {
  if (clips.empty() || fields.size() != kSelectFields * clips.size()) {
    fail("the plan has ", fields.size(), " integers for ", clips.size(), " videos; expected ",
         kSelectFields, " for each: frames, tokens, total, budget, scale, cap");
  }
  std::vector<SelectPlan> plans;
  for (size_t v = 0; v < clips.size(); ++v) {
    const int64_t* f = fields.data() + kSelectFields * v;
    const SelectPlan plan{f[0], f[1], f[2], f[3], f[4], f[5], clips[v]};
    constexpr int64_t kLimit = int64_t{1} << 31;
    const bool sized = plan.frames >= 1 && plan.tokens >= 1 && plan.frames < kLimit &&
                       plan.tokens < kLimit && plan.frames * plan.tokens < kLimit;
    if (!sized || plan.budget < 0 || plan.budget > plan.total ||
        plan.total > plan.frames * plan.tokens || plan.scale < 0 || plan.scale >= kLimit ||
        plan.cap < 1 || plan.cap > plan.tokens || !(plan.clip > 0.0)) {
      fail("the plan of video ", v, " contradicts itself; make it with reference.select_plan");
    }
    plans.push_back(plan);
  }
  return plans;
}

struct SelectSizes {
  int64_t tokens = 0;
  int64_t frames = 0;
  int64_t kept = 0;
};

inline SelectSizes sizes_of(const std::vector<SelectPlan>& plans) {
  SelectSizes sizes;
  for (const SelectPlan& plan : plans) {
    sizes.tokens += plan.frames * plan.tokens;
    sizes.frames += plan.frames;
    sizes.kept += plan.total;
  }
  return sizes;
}

inline std::vector<OcssPlan> unpack_ocss(const std::vector<int64_t>& fields) {
  if (fields.empty() || fields.size() % kOcssFields != 0) {
    fail("the plan has ", fields.size(), " integers; expected ", kOcssFields,
         " for each video: frames, tokens, keep, subspaces, cap");
  }
  std::vector<OcssPlan> plans;
  for (size_t at = 0; at < fields.size(); at += kOcssFields) {
    const int64_t* f = fields.data() + at;
    const OcssPlan plan{f[0], f[1], f[2], f[3], f[4]};
    const bool good = plan.frames >= 1 && plan.frames <= std::numeric_limits<int32_t>::max() &&
                      plan.tokens >= 1 && plan.tokens <= kMaxEntries && plan.keep >= 1 &&
                      plan.keep <= plan.tokens && plan.subspaces >= 1 &&
                      plan.subspaces <= plan.tokens && plan.cap >= 1 && plan.cap <= kOne;
    if (!good) {
      fail("the plan of video ", at / kOcssFields,
           " contradicts itself; make it with reference.ocss_plan");
    }
    plans.push_back(plan);
  }
  return plans;
}

struct OcssSizes {
  int64_t tokens = 0;
  int64_t columns = 0;
};

inline OcssSizes sizes_of(const std::vector<OcssPlan>& plans, int64_t rollouts) {
  if (rollouts < 1) fail("rollouts is ", rollouts, "; expected at least 1");
  OcssSizes sizes;
  for (const OcssPlan& plan : plans) {
    sizes.tokens += plan.frames * plan.tokens;
    sizes.columns += plan.frames * plan.keep;
  }
  if (sizes.tokens > std::numeric_limits<int32_t>::max()) {
    fail("the videos have ", sizes.tokens, " tokens; the int32 indices hold 2,147,483,647 at most");
  }
  return sizes;
}

inline std::vector<FramePlan> unpack_frames(const std::vector<int64_t>& fields, int64_t rollouts) {
  if (rollouts < 1) fail("rollouts is ", rollouts, "; expected at least 1");
  if (fields.empty() || fields.size() % kFrameFields != 0) {
    fail("the plan has ", fields.size(), " integers; expected ", kFrameFields,
         " for each video: frames, choose, cap, floor");
  }
  std::vector<FramePlan> plans;
  for (size_t at = 0; at < fields.size(); at += kFrameFields) {
    const int64_t* f = fields.data() + at;
    const FramePlan plan{f[0], f[1], f[2], f[3]};
    const bool good = plan.frames >= 1 && plan.frames <= kMaxEntries && plan.choose >= 1 &&
                      plan.choose <= plan.frames && plan.cap >= 1 && plan.cap <= kOne &&
                      plan.floor >= 1 && plan.floor <= kOne;
    if (!good) {
      fail("the plan of video ", at / kFrameFields,
           " contradicts itself; make it with reference.frame_plan");
    }
    plans.push_back(plan);
  }
  return plans;
}

// Tokens of all videos of Bernoulli rollouts.
inline int64_t count_bernoulli(const std::vector<int64_t>& counts, int64_t rollouts) {
  if (rollouts < 1) fail("rollouts is ", rollouts, "; expected at least 1");
  if (counts.empty()) fail("the plan has no video; expected the tokens of each");
  int64_t tokens = 0;
  for (const int64_t count : counts) {
    if (count < 1 || count > kMaxBernoulliTokens) {
      fail("a video has ", count, " tokens; expected 1 to ", kMaxBernoulliTokens);
    }
    tokens += count;
  }
  return tokens;
}

}  // namespace cacovid
