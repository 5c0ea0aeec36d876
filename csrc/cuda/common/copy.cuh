// Copies from global to shared memory that go on while the thread computes (cp.async).
//
// copy_async<16 | 8 | 4>(to, from, bytes) starts one, of addresses that are multiples of that size;
// with a smaller `bytes` the rest becomes zero and is not read. commit_copies() closes the group of
// the copies that this thread has started since the last; wait_copies<N>() waits until all of its
// groups but the last N are there. What a thread has waited for is there for that thread: the block
// reads it after the next __syncthreads(). Multiple stages: start and commit the copies of the next
// stage, wait_copies<1>, __syncthreads, compute, __syncthreads.
#pragma once

#include <cstdint>

#include "launch.h"

#if defined(ATTNOPS_EMULATION)

#include "cuda_emulation_instructions.h"

#else

namespace attnops::cuda {

template <int kBytes>
__device__ __forceinline__ void copy_async(void* to, const void* from, int bytes = kBytes) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  const auto at = static_cast<uint32_t>(__cvta_generic_to_shared(to));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(at), "l"(from), "n"(kBytes),
                 "r"(bytes)
                 : "memory");
  }
}

__device__ __forceinline__ void commit_copies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}

template <int kPending>
__device__ __forceinline__ void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kPending) : "memory");
}

}  // namespace attnops::cuda

#endif
