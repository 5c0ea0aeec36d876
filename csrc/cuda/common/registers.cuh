// Values that the compiler computes anew instead of keeping them in registers for other phases of a
// kernel.
#pragma once

#include "launch.h"

namespace attnops::cuda {

// threadIdx.x, read anew: so is what follows from it.
__device__ __forceinline__ int thread_now() {
#if defined(ATTNOPS_EMULATION)
  return threadIdx.x;
#else
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
#endif
}

// blockIdx.x likewise.
__device__ __forceinline__ unsigned block_now() {
#if defined(ATTNOPS_EMULATION)
  return blockIdx.x;
#else
  unsigned index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
#endif
}

// x, of which the compiler forgets what it knows.
__device__ __forceinline__ float forgotten(float x) {
#if !defined(ATTNOPS_EMULATION)
  asm volatile("" : "+f"(x));
#endif
  return x;
}

}  // namespace attnops::cuda
