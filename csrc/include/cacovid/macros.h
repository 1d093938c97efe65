// What lets one definition serve the host compiler and nvcc.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CACOVID_HD __host__ __device__ inline
// A loop whose reads should be under way together, and one whose array should stay in registers.
#define CACOVID_UNROLL_8 _Pragma("unroll 8")
#define CACOVID_UNROLL _Pragma("unroll")
#else
#define CACOVID_HD inline
#define CACOVID_UNROLL_8
#define CACOVID_UNROLL
#endif

namespace cacovid {

template <class To, class From>
CACOVID_HD To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "bit_cast between different sizes");
  To to;
  memcpy(&to, &from, sizeof(To));
  return to;
}

}  // namespace cacovid
