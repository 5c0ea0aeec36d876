// The functions and types of CUDA C++ that kernels use, for cuda_emulation.h.
#pragma once

#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include <cmath>

#include "cuda_emulation.h"

#define ATTNOPS_SITE(what) \
  ::attnops::emulation::Site { what, __FILE__, __LINE__ }

#define ATTNOPS_DYNAMIC_SHARED(name) \
  unsigned char* name = ::attnops::emulation::machine().dynamic_shared()

#define ATTNOPS_SHARED_ARRAY(type, name, extents)                                \
  using name##_array = type extents;                                             \
  static ::attnops::emulation::SharedBlock name##_storage(sizeof(name##_array)); \
  auto& name = *reinterpret_cast<name##_array*>(::attnops::emulation::machine().get(name##_storage))

#define ATTNOPS_LAUNCH(kernel, grid, block, shared_bytes, ...)                              \
  ::attnops::emulation::machine().launch(#kernel, false, kernel, grid, block, shared_bytes, \
                                         __VA_ARGS__)

#define ATTNOPS_LAUNCH_COOPERATIVE(kernel, grid, block, shared_bytes, ...)                 \
  ::attnops::emulation::machine().launch(#kernel, true, kernel, grid, block, shared_bytes, \
                                         __VA_ARGS__)

// Barriers and warp functions are macros, so that each knows the line it was called from.
#define __syncthreads() ::attnops::emulation::machine().barrier(ATTNOPS_SITE("__syncthreads"))
#define __syncwarp(...) ::attnops::emulation::SyncWarp{ATTNOPS_SITE("__syncwarp")}(__VA_ARGS__)
#define __shfl_sync(...) ::attnops::emulation::shuffle(ATTNOPS_SITE("__shfl_sync"), __VA_ARGS__)
#define __shfl_up_sync(...) \
  ::attnops::emulation::shuffle_up(ATTNOPS_SITE("__shfl_up_sync"), __VA_ARGS__)
#define __shfl_down_sync(...) \
  ::attnops::emulation::shuffle_down(ATTNOPS_SITE("__shfl_down_sync"), __VA_ARGS__)
#define __shfl_xor_sync(...) \
  ::attnops::emulation::shuffle_xor(ATTNOPS_SITE("__shfl_xor_sync"), __VA_ARGS__)
#define __ballot_sync(...) ::attnops::emulation::ballot(ATTNOPS_SITE("__ballot_sync"), __VA_ARGS__)
#define __any_sync(...) (::attnops::emulation::ballot(ATTNOPS_SITE("__any_sync"), __VA_ARGS__) != 0)
#define __all_sync(mask, predicate) \
  (::attnops::emulation::ballot(ATTNOPS_SITE("__all_sync"), mask, !(predicate)) == 0)

namespace attnops::emulation {

struct SyncWarp {
  Site site;
  void operator()(unsigned mask = 0xFFFFFFFFu) const {
    char nothing = 0;
    machine().exchange(site, mask, &nothing, sizeof(nothing), -1, false);
  }
};

inline unsigned ballot(Site site, unsigned mask, bool predicate) {
  char nothing = 0;
  return machine().exchange(site, mask, &nothing, sizeof(nothing), -1, predicate);
}

// Takes the value of lane `source`, or keeps its own where `source` leaves [first, last].
template <typename T>
T take_lane(Site site, unsigned mask, T value, int source, int first, int last) {
  static_assert(sizeof(T) <= sizeof(Fiber::value), "shuffles move at most 16 bytes");
  const bool keeps = source < first || source > last;
  machine().exchange(site, mask, &value, sizeof(T), keeps ? -1 : source, false);
  return value;
}

inline int segment(int width) { return machine().lane() & ~(width - 1); }

template <typename T>
T shuffle(Site site, unsigned mask, T value, int source, int width = warpSize) {
  return take_lane(site, mask, value, segment(width) + (source & (width - 1)), 0, warpSize - 1);
}

template <typename T>
T shuffle_up(Site site, unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = machine().lane() - static_cast<int>(delta);
  return take_lane(site, mask, value, source, segment(width), warpSize - 1);
}

template <typename T>
T shuffle_down(Site site, unsigned mask, T value, unsigned delta, int width = warpSize) {
  const int source = machine().lane() + static_cast<int>(delta);
  return take_lane(site, mask, value, source, 0, segment(width) + width - 1);
}

template <typename T>
T shuffle_xor(Site site, unsigned mask, T value, int bits, int width = warpSize) {
  const int source = machine().lane() ^ bits;
  return take_lane(site, mask, value, source, 0, segment(width) + width - 1);
}

}  // namespace attnops::emulation

// Atomics; ThreadSanitizer knows these builtins.
template <typename T, typename Function>
T attnops_update(T* address, const Function& function) {
  T old;
  __atomic_load(address, &old, __ATOMIC_RELAXED);
  T next = function(old);
  while (
      !__atomic_compare_exchange(address, &old, &next, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    next = function(old);
  }
  return old;
}
template <typename T>
T atomicAdd(T* address, T value) {
  return attnops_update(address, [value](T old) { return static_cast<T>(old + value); });
}
template <typename T>
T atomicMax(T* address, T value) {
  return attnops_update(address, [value](T old) { return std::max(old, value); });
}
template <typename T>
T atomicMin(T* address, T value) {
  return attnops_update(address, [value](T old) { return std::min(old, value); });
}
template <typename T>
T atomicExch(T* address, T value) {
  return attnops_update(address, [value](T) { return value; });
}
template <typename T>
T atomicCAS(T* address, T compare, T value) {
  return attnops_update(address, [=](T old) { return old == compare ? value : old; });
}
inline void __threadfence() {}
inline void __threadfence_block() {}

template <typename T>
T __ldg(const T* address) {
  return *address;
}

using std::max;
using std::min;
using __half = c10::Half;
using __nv_bfloat16 = c10::BFloat16;
inline float __half2float(__half x) { return x; }
inline __half __float2half(float x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __expf(float x) { return std::exp(x); }
inline float __logf(float x) { return std::log(x); }
inline float __fdividef(float x, float y) { return x / y; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned x) {
  float value;
  std::memcpy(&value, &x, sizeof(value));
  return value;
}
inline unsigned __float_as_uint(float x) {
  unsigned bits;
  std::memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline double2 make_double2(double x, double y) { return {x, y}; }

namespace attnops::cuda {
inline void fill_zero(void* memory, size_t bytes, cudaStream_t) { std::memset(memory, 0, bytes); }

// As many as shared memory and threads of sm_90 allow.
template <typename... Parameters>
int resident_blocks(void (*)(Parameters...), int threads, size_t shared_bytes,
                    int multiprocessors) {
  constexpr size_t kShared = 228 * 1024, kReserved = 1024;
  constexpr int kThreads = 2048, kBlocks = 32;
  if (shared_bytes + kReserved > kShared) return 0;
  const int by_shared = static_cast<int>(kShared / (shared_bytes + kReserved));
  return multiprocessors * std::min({by_shared, kThreads / threads, kBlocks});
}
}  // namespace attnops::cuda
