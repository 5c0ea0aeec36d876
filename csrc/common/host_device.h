// Marks functions that both the host compiler and nvcc build.
#pragma once

#if defined(__CUDACC__)
#define ATTNOPS_HOST_DEVICE __host__ __device__ __forceinline__
#else
#define ATTNOPS_HOST_DEVICE inline
#endif
