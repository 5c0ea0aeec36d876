// Starts kernels. A kernel body stands in a header, knows nothing of torch, and is launched through
// ATTNOPS_LAUNCH: by nvcc on a device, or, with ATTNOPS_EMULATION defined, by the host emulation of
// the tests, which then runs the same source with the same launch configuration.
#pragma once

#if defined(ATTNOPS_EMULATION)

#include "cuda_emulation.h"

#else

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#include <tuple>

// The dynamic shared memory of the block, as bytes.
#define ATTNOPS_DYNAMIC_SHARED(name) extern __shared__ __align__(128) unsigned char name[]

// A static shared array: ATTNOPS_SHARED_ARRAY(float, s_tile, [32][33]).
#define ATTNOPS_SHARED_ARRAY(type, name, extents) __shared__ type name extents

// Launches `kernel` (in parentheses if it has template arguments); the stream and the kernel's
// arguments follow.
#define ATTNOPS_LAUNCH(kernel, grid, block, shared_bytes, ...) \
  ::attnops::cuda::launch(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

// The same for a kernel whose blocks wait for each other (grid.cuh): all run at the same time. The
// grid has at most resident_blocks() blocks.
#define ATTNOPS_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, ...) \
  ::attnops::cuda::launch_cooperative(#kernel, kernel, grid, block, shared_bytes, __VA_ARGS__)

namespace attnops::cuda {

inline void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) {
    throw std::runtime_error(std::string("attnops: ") + what + ": " + cudaGetErrorString(error));
  }
}

template <typename Kernel>
void allow_shared(const char* name, Kernel kernel, size_t shared_bytes) {
  constexpr size_t kWithoutOptIn = 48 * 1024;
  if (shared_bytes > kWithoutOptIn) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          name);
  }
}

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  allow_shared(name, kernel, shared_bytes);
  kernel<<<grid, block, shared_bytes, stream>>>(arguments...);
  check(cudaGetLastError(), name);
}

template <typename... Parameters, typename... Arguments>
void launch_cooperative(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                        size_t shared_bytes, cudaStream_t stream, Arguments&&... arguments) {
  allow_shared(name, kernel, shared_bytes);
  std::tuple<Parameters...> values(arguments...);
  std::apply(
      [&](auto&... value) {
        void* pointers[] = {const_cast<void*>(static_cast<const void*>(&value))...};
        check(cudaLaunchCooperativeKernel(reinterpret_cast<const void*>(kernel), grid, block,
                                          pointers, shared_bytes, stream),
              name);
      },
      values);
}

// How many blocks of a kernel the current device, of so many multiprocessors, runs at a time; 0 if
// it cannot give one its shared memory.
template <typename... Parameters>
int resident_blocks(void (*kernel)(Parameters...), int threads, size_t shared_bytes,
                    int multiprocessors) {
  int device = 0, most_shared = 0, blocks = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&most_shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, device),
        "cudaDeviceGetAttribute");
  if (shared_bytes > static_cast<size_t>(most_shared)) return 0;
  allow_shared("resident_blocks", kernel, shared_bytes);
  check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared_bytes),
        "cudaOccupancyMaxActiveBlocksPerMultiprocessor");
  return blocks * multiprocessors;
}

inline void fill_zero(void* memory, size_t bytes, cudaStream_t stream) {
  check(cudaMemsetAsync(memory, 0, bytes, stream), "cudaMemsetAsync");
}

}  // namespace attnops::cuda

#endif
