// What lets one definition serve the host compiler and nvcc.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#define CACOVID_HD __host__ __device__ inline
#else
#define CACOVID_HD inline
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
