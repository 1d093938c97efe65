// Sixteen floats at a time, the same sums on every machine: the compiler splits a vector where the
// machine's registers are shorter. No fused multiply-add, but in the files that CMakeLists.txt
// names.
#pragma once

#include <cstdint>
#include <cstring>

#include "cacovid/elements.h"

// One body, compiled for several instruction sets and chosen when the library runs:
//   CACOVID_INLINE void body(...) {...}     CACOVID_DISPATCH(name, body, (types), (arguments))
// CACOVID_DISPATCH_BY takes one body for registers of sixteen floats and one for shorter ones.
#define CACOVID_INLINE inline __attribute__((always_inline))
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define CACOVID_WIDE "avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"
#define CACOVID_DISPATCH_BY(name, wide, narrow, parameters, arguments)                    \
  __attribute__((target(CACOVID_WIDE))) void name##_avx512 parameters { wide arguments; } \
  __attribute__((target("avx2,fma"))) void name##_avx2 parameters { narrow arguments; }   \
  void name##_any parameters { narrow arguments; }                                        \
  void name parameters {                                                                  \
    if (has_avx512()) {                                                                   \
      name##_avx512 arguments;                                                            \
    } else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {         \
      name##_avx2 arguments;                                                              \
    } else {                                                                              \
      name##_any arguments;                                                               \
    }                                                                                     \
  }
#else
#define CACOVID_DISPATCH_BY(name, wide, narrow, parameters, arguments) \
  void name parameters { narrow arguments; }
#endif
#define CACOVID_DISPATCH(name, body, parameters, arguments) \
  CACOVID_DISPATCH_BY(name, body, body, parameters, arguments)

namespace cacovid {

constexpr int64_t kLanes = 16;
using Lanes = float __attribute__((vector_size(64)));
using IntLanes = int32_t __attribute__((vector_size(64)));
using WordLanes = uint32_t __attribute__((vector_size(64)));
using HalfLanes = uint16_t __attribute__((vector_size(32)));

inline bool has_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#else
  return false;
#endif
}

constexpr int64_t padded(int64_t count) { return (count + kLanes - 1) / kLanes * kLanes; }

CACOVID_INLINE Lanes splat(float value) { return Lanes{} + value; }

CACOVID_INLINE Lanes load(const float* from) {
  Lanes to;
  std::memcpy(&to, from, sizeof(to));
  return to;
}

CACOVID_INLINE void store(float* to, Lanes from) { std::memcpy(to, &from, sizeof(from)); }

CACOVID_INLINE WordLanes load_words(const void* from) {
  HalfLanes halves;
  std::memcpy(&halves, from, sizeof(halves));
  return __builtin_convertvector(halves, WordLanes);
}

CACOVID_INLINE Lanes load(const Bfloat16* from) { return (Lanes)(load_words(from) << 16); }

CACOVID_INLINE Lanes load(const Float16* from) {
  const WordLanes words = load_words(from);
  const WordLanes magnitude = (words & 0x7FFFu) << 13;
  // 2**112 moves the exponent's bias, also of subnormal numbers; infinities and NaN keep theirs.
  const Lanes scaled = (Lanes)magnitude * splat(0x1p112f);
  const WordLanes special = (WordLanes)(magnitude >= 0x0F800000u) & 0x7F800000u;
  return (Lanes)((WordLanes)scaled | special | ((words & 0x8000u) << 16));
}

template <class Element>
CACOVID_INLINE float element(const Element* from) {
  alignas(64) Element copy[kLanes] = {*from};
  return load(copy)[0];
}

using Quarter = float __attribute__((vector_size(16)));

CACOVID_INLINE Quarter quarter(const float* lanes, int64_t number) {
  Quarter to;
  std::memcpy(&to, lanes + 4 * number, sizeof(to));
  return to;
}

// The sum of all lanes, in one order. By quarters, which every machine has registers for.
CACOVID_INLINE float sum_of(Lanes x) {
  float lanes[kLanes];
  store(lanes, x);
  const Quarter sum =
      (quarter(lanes, 0) + quarter(lanes, 2)) + (quarter(lanes, 1) + quarter(lanes, 3));
  return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

CACOVID_INLINE Lanes either(IntLanes wish, Lanes yes, Lanes no) {
  return (Lanes)((wish & (IntLanes)yes) | (~wish & (IntLanes)no));
}

// The larger in each lane; where one is NaN, `b`.
CACOVID_INLINE Lanes larger(Lanes a, Lanes b) { return either(a > b, a, b); }

// Exchanges, of two rows that are kWidth apart, the lanes that stand on the wrong side.
template <int kWidth>
CACOVID_INLINE void exchange(Lanes& upper, Lanes& lower) {
  IntLanes first, second;
  for (int i = 0; i < kLanes; ++i) {
    const bool right = (i & kWidth) != 0;
    first[i] = right ? static_cast<int>(kLanes) + i - kWidth : i;
    second[i] = right ? static_cast<int>(kLanes) + i : i + kWidth;
  }
  const Lanes kept = upper;
  upper = __builtin_shuffle(kept, lower, first);
  lower = __builtin_shuffle(kept, lower, second);
}

template <int kWidth>
CACOVID_INLINE void exchange_all(Lanes (&rows)[kLanes]) {
  for (int i = 0; i < kLanes; ++i) {
    if ((i & kWidth) == 0) exchange<kWidth>(rows[i], rows[i + kWidth]);
  }
}

// Lane j of row i becomes lane i of row j.
CACOVID_INLINE void transpose(Lanes (&rows)[kLanes]) {
  exchange_all<8>(rows);
  exchange_all<4>(rows);
  exchange_all<2>(rows);
  exchange_all<1>(rows);
}

// exp(x) of x <= 0, to about one unit in the last place; NaN stays NaN.
CACOVID_INLINE Lanes exp_of_negative(Lanes x) {
  const Lanes least = splat(-87.0f);
  const Lanes d = either(x < least, least, x);
  const IntLanes k = __builtin_convertvector(d * 1.44269502f - 0.5f, IntLanes);
  const Lanes whole = __builtin_convertvector(k, Lanes);
  const Lanes r = (d - whole * 0.693359375f) - whole * -2.12194440e-4f;
  Lanes p = splat(1.0f / 5040.0f);
  p = p * r + 1.0f / 720.0f;
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r + 1.0f;
  p = p * r + 1.0f;
  return p * (Lanes)((k + 127) << 23);
}

// x * sigmoid(x).
CACOVID_INLINE Lanes silu(Lanes x) {
  const Lanes magnitude = (Lanes)((WordLanes)x & 0x7FFFFFFFu);
  const Lanes e = exp_of_negative(-magnitude);
  const Lanes one = splat(1.0f);
  return x * (either(x < 0.0f, e, one) / (e + one));
}

}  // namespace cacovid
