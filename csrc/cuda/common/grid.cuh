// Barriers of all blocks of a grid, or of a part of it.
//
// GridBarrier(counter, blocks): `blocks` blocks that run at the same time share a counter in global
// memory, 0 before the launch (fill_zero). wait() is __syncthreads() for all their threads: what
// they wrote to global memory before is there for all after, if it is read by plain loads (not by
// __ldg, nor through const __restrict__ pointers, which may be read by the read-only cache).
// arrive() and await() are its two halves; what a block does between them costs no waiting.
//
// The kernel is started by ATTNOPS_LAUNCH_COOPERATIVE with a grid of at most resident_blocks().
// Where that is too few, the same kernel is launched once for every phase between two barriers.
#pragma once

#include "launch.h"

#if defined(ATTNOPS_EMULATION)

#include "cuda_emulation_instructions.h"

#else

namespace attnops::cuda {

class GridBarrier {
 public:
  __device__ __forceinline__ GridBarrier(unsigned* counter, unsigned blocks)
      : counter_(counter), blocks_(blocks) {}

  __device__ __forceinline__ void arrive() {
    target_ += blocks_;
    __syncthreads();
    if (is_first())
      asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(counter_) : "memory");
  }
  __device__ __forceinline__ void await() {
    if (is_first()) {
      unsigned arrived;
      do {
        asm volatile("ld.acquire.gpu.global.u32 %0, [%1];"
                     : "=r"(arrived)
                     : "l"(counter_)
                     : "memory");
      } while (arrived < target_);
    }
    __syncthreads();
  }
  __device__ __forceinline__ void wait() {
    arrive();
    await();
  }

 private:
  __device__ __forceinline__ static bool is_first() {
    return (threadIdx.x | threadIdx.y | threadIdx.z) == 0;
  }

  unsigned* counter_;
  unsigned blocks_;
  unsigned target_ = 0;
};

}  // namespace attnops::cuda

#endif
