// Small kernels that show what the emulation does and what it refuses. selftest_driver NAME runs
// one: the well-behaved ones print their result, the others must be caught.
#include <cstdio>
#include <string>

#include "cuda/common/launch.h"

namespace {

constexpr unsigned kFull = 0xFFFFFFFFu;

// out[block]: sum of in over the block's 96 threads: shuffles, then one value a warp through shared
// memory.
__global__ void block_sum(const float* in, float* out) {
  ATTNOPS_SHARED_ARRAY(float, s_warps, [3]);
  float sum = in[blockIdx.x * blockDim.x + threadIdx.x];
  for (int delta = 16; delta > 0; delta /= 2) sum += __shfl_down_sync(kFull, sum, delta);
  if (threadIdx.x % warpSize == 0) s_warps[threadIdx.x / warpSize] = sum;
  __syncthreads();
  if (threadIdx.x == 0) out[blockIdx.x] = s_warps[0] + s_warps[1] + s_warps[2];
}

// Every kind of warp function on lanes 0 to 31; out[7][32].
__global__ void warp_functions(int* out) {
  const int lane = threadIdx.x;
  int* row = out + lane;
  row[0 * 32] = __shfl_sync(kFull, lane * 10, 35, 8);
  row[1 * 32] = __shfl_up_sync(kFull, lane, 3, 16);
  row[2 * 32] = __shfl_down_sync(kFull, lane, 5, 16);
  row[3 * 32] = __shfl_xor_sync(kFull, lane, 9);
  row[4 * 32] = static_cast<int>(__ballot_sync(kFull, lane % 3 == 0));
  row[5 * 32] = __all_sync(kFull, lane < 32) + 2 * __any_sync(kFull, lane == 40);
  // The halves of the warp go different ways.
  if (lane < 16) {
    row[6 * 32] = __shfl_xor_sync(0x0000FFFFu, lane, 1);
  } else {
    row[6 * 32] = __shfl_xor_sync(0xFFFF0000u, -lane, 2);
  }
  __syncwarp();
}

// Order of the threads: each appends itself, and once more after a barrier.
__global__ void record_order(int* out, int* count) {
  out[atomicAdd(count, 1)] = threadIdx.x;
  __syncthreads();
  out[atomicAdd(count, 1)] = threadIdx.x;
}

// Shared memory is poisoned for each block: the second must not see what the first wrote.
__global__ void stale_shared(float* out) {
  ATTNOPS_SHARED_ARRAY(float, s_static, [2]);
  ATTNOPS_DYNAMIC_SHARED(shared);
  float* s_dynamic = reinterpret_cast<float*>(shared);
  out[2 * blockIdx.x] = s_static[0];
  out[2 * blockIdx.x + 1] = s_dynamic[0];
  s_static[0] = s_dynamic[0] = 1;
}

__global__ void early_return() {
  if (threadIdx.x == 5) return;
  __syncthreads();
}

__global__ void two_barriers() {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void barrier_and_shuffle(int* out) {
  if (threadIdx.x == 3) {
    __syncthreads();
  } else {
    out[threadIdx.x] = __shfl_sync(kFull, 1, 0);
  }
}

__global__ void shuffle_without_lane(int* out) {
  if (threadIdx.x != 7) out[threadIdx.x] = __shfl_sync(kFull, 1, 0);
}

__global__ void shuffle_different_masks(int* out) {
  out[threadIdx.x] = __shfl_xor_sync(threadIdx.x < 16 ? kFull : 0xFFFF0000u, 1, 1);
}

__global__ void mask_without_self(int* out) { out[threadIdx.x] = __shfl_sync(0x0000FFFFu, 1, 0); }

__global__ void read_outside_mask(int* out) {
  if (threadIdx.x < 16) out[threadIdx.x] = __shfl_sync(0x0000FFFFu, 1, 20);
}

__global__ void static_overrun() {
  ATTNOPS_SHARED_ARRAY(float, s_tile, [8]);
  float* flat = s_tile;
  flat[threadIdx.x] = 0;
}

__global__ void dynamic_overrun() {
  ATTNOPS_DYNAMIC_SHARED(shared);
  reinterpret_cast<float*>(shared)[threadIdx.x] = 0;
}

__global__ void misaligned_access(float4* out) {
  ATTNOPS_DYNAMIC_SHARED(shared);
  *out = *reinterpret_cast<float4*>(shared + 4);
}

// Neighbours exchange values through shared memory; correct only with a barrier in between. Both
// threads of a pair write the same value, so that no order of threads changes the result.
__global__ void benign_race(int* out) {
  ATTNOPS_SHARED_ARRAY(int, s_pair, [1]);
  s_pair[0] = 4;
  out[threadIdx.x] = s_pair[0];
}

template <typename T>
void print(const T* values, int count) {
  for (int k = 0; k < count; ++k) std::printf("%g ", static_cast<double>(values[k]));
  std::printf("\n");
}

int ints[256];
float floats[256];

void launch(const std::string& name) {
  if (name == "block_sum") {
    for (int k = 0; k < 192; ++k) floats[k] = static_cast<float>(k);
    float sums[2];
    ATTNOPS_LAUNCH(block_sum, dim3(2), dim3(96), 0, nullptr, floats, sums);
    print(sums, 2);
  } else if (name == "warp_functions") {
    ATTNOPS_LAUNCH(warp_functions, dim3(1), dim3(32), 0, nullptr, ints);
    for (int k = 0; k < 7; ++k) print(ints + 32 * k, 32);
  } else if (name == "record_order") {
    int count = 0;
    ATTNOPS_LAUNCH(record_order, dim3(1), dim3(4), 0, nullptr, ints, &count);
    print(ints, 8);
  } else if (name == "stale_shared") {
    ATTNOPS_LAUNCH(stale_shared, dim3(2), dim3(1), 8, nullptr, floats);
    print(floats, 4);
  } else if (name == "early_return") {
    ATTNOPS_LAUNCH(early_return, dim3(2), dim3(8), 0, nullptr);
  } else if (name == "two_barriers") {
    ATTNOPS_LAUNCH(two_barriers, dim3(1), dim3(64), 0, nullptr);
  } else if (name == "barrier_and_shuffle") {
    ATTNOPS_LAUNCH(barrier_and_shuffle, dim3(1), dim3(32), 0, nullptr, ints);
  } else if (name == "shuffle_without_lane") {
    ATTNOPS_LAUNCH(shuffle_without_lane, dim3(1), dim3(32), 0, nullptr, ints);
  } else if (name == "shuffle_different_masks") {
    ATTNOPS_LAUNCH(shuffle_different_masks, dim3(1), dim3(32), 0, nullptr, ints);
  } else if (name == "mask_without_self") {
    ATTNOPS_LAUNCH(mask_without_self, dim3(1), dim3(32), 0, nullptr, ints);
  } else if (name == "read_outside_mask") {
    ATTNOPS_LAUNCH(read_outside_mask, dim3(1), dim3(32), 0, nullptr, ints);
  } else if (name == "static_overrun") {
    ATTNOPS_LAUNCH(static_overrun, dim3(1), dim3(9), 0, nullptr);
  } else if (name == "dynamic_overrun") {
    ATTNOPS_LAUNCH(dynamic_overrun, dim3(1), dim3(9), 8 * sizeof(float), nullptr);
  } else if (name == "misaligned_access") {
    float4 value;
    ATTNOPS_LAUNCH(misaligned_access, dim3(1), dim3(1), 64, nullptr, &value);
  } else if (name == "benign_race") {
    ATTNOPS_LAUNCH(benign_race, dim3(1), dim3(2), 0, nullptr, ints);
    print(ints, 2);
  } else if (name == "large_block") {
    ATTNOPS_LAUNCH(early_return, dim3(1), dim3(1025), 0, nullptr);
  } else if (name == "large_grid") {
    ATTNOPS_LAUNCH(early_return, dim3(1, 65536), dim3(1), 0, nullptr);
  } else if (name == "large_shared") {
    ATTNOPS_LAUNCH(early_return, dim3(1), dim3(1), 228 * 1024, nullptr);
  } else {
    std::fprintf(stderr, "no kernel is called %s\n", name.c_str());
    std::exit(2);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: selftest_driver NAME\n");
    return 2;
  }
  launch(argv[1]);
  return 0;
}
