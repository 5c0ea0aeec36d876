// Element types of the kernels: the type their sums are kept in, and vectors for wide accesses.
#pragma once

#include <cstdint>

#include "launch.h"

namespace attnops::cuda {

// Bytes of the widest access to global memory.
constexpr int kAccessBytes = 16;

template <typename T>
struct Accumulator {
  using type = float;
};
template <>
struct Accumulator<double> {
  using type = double;
};
template <typename T>
using accumulator_t = typename Accumulator<T>::type;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }

template <typename T>
__device__ __forceinline__ T narrow(accumulator_t<T> x) {
  return x;
}
template <>
__device__ __forceinline__ __half narrow<__half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ __nv_bfloat16 narrow<__nv_bfloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// N elements that are loaded and stored together; the address is a multiple of the size.
template <typename T, int N>
struct alignas(sizeof(T) * N) Vector {
  T value[N];
};

inline bool is_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kAccessBytes == 0;
}

}  // namespace attnops::cuda
