// Runs what the wrappers of instructions and grid barriers do (csrc/cuda/common), on small kernels.
//
//   instructions_driver REQUEST RESULT
//
// REQUEST holds int64 numbers (struct Request), then the kernel's inputs; RESULT receives what it
// wrote. `fault` = 0 is right; other numbers are faults that must be caught.
#include "cuda/common/copy.cuh"
#include "cuda/common/grid.cuh"
#include "cuda/common/mma.cuh"
#include "exchange.h"

namespace {

using namespace attnops::cuda;
using namespace attnops::emulation;

struct Request {
  int64_t kernel, variant, fault;
};

// Fragments as they are: a [32][4], b [32][2], c [32][4] of lanes and their registers; c += a b.
template <typename T>
__global__ void mma_kernel(const uint32_t* p_a, const uint32_t* p_b, float* p_c) {
  const int lane = threadIdx.x;
  uint32_t a[4], b[2];
  float c[4];
  std::copy_n(p_a + 4 * lane, 4, a);
  std::copy_n(p_b + 2 * lane, 2, b);
  std::copy_n(p_c + 4 * lane, 4, c);
  mma<T>(c, a, b);
  std::copy_n(c, 4, p_c + 4 * lane);
}

// The same of float fragments.
template <bool kFinite>
__global__ void mma_3xtf32_kernel(const float* p_a, const float* p_b, float* p_c) {
  const int lane = threadIdx.x;
  uint32_t a_big[4], a_small[4], b_big[2], b_small[2];
  float c[4];
  const auto split = kFinite ? split_finite_tf32 : split_tf32;
  for (int i = 0; i < 4; ++i) split(p_a[4 * lane + i], a_big[i], a_small[i]);
  for (int i = 0; i < 2; ++i) split(p_b[2 * lane + i], b_big[i], b_small[i]);
  std::copy_n(p_c + 4 * lane, 4, c);
  mma_3xtf32(c, a_big, a_small, b_big, b_small);
  std::copy_n(c, 4, p_c + 4 * lane);
}

// x [32][8] of 16 bits: row i of matrix m is x[8 m + i]. out [32][kCount] of lanes.
template <int kCount, bool kTransposed>
__global__ void load_kernel(const uint16_t* p_x, uint32_t* p_out) {
  constexpr int kPitch = 24;
  ATTNOPS_SHARED_ARRAY(float4, s_x, [32 * kPitch / 8]);  // for its alignment
  const int lane = threadIdx.x;
  auto* s_rows = reinterpret_cast<uint16_t*>(s_x);
  std::copy_n(p_x + 8 * lane, 8, s_rows + kPitch * lane);
  __syncthreads();
  uint32_t r[kCount];
  load_matrices<kCount, kTransposed>(r, s_rows + kPitch * lane);
  std::copy_n(r, kCount, p_out + kCount * lane);
}

// out[16][8] = sum over `steps` of a[step] [16][16] times b[step] [8][16] transposed: halves,
// copied in two stages, by ldmatrix and mma.
__global__ void product_kernel(const __half* p_a, const __half* p_b, int steps, int fault,
                               float* p_out) {
  constexpr int kRows = 24;  // of a, then of b
  constexpr int kPitch = 24;
  ATTNOPS_SHARED_ARRAY(float4, s_stages, [2 * kRows * kPitch / 8]);
  auto* s_rows = reinterpret_cast<__half*>(s_stages);
  const int lane = threadIdx.x % 32;
  const auto start = [&](int step) {
    for (int k = threadIdx.x; k < kRows * 2; k += blockDim.x) {
      const int row = k / 2, half = k % 2 * 8;
      const __half* from =
          row < 16 ? p_a + (step * 16 + row) * 16 : p_b + (step * 8 + row - 16) * 16;
      copy_async<16>(s_rows + (step % 2 * kRows + row) * kPitch + half, from + half);
    }
    commit_copies();
  };
  float c[4] = {};
  start(0);
  for (int step = 0; step < steps; ++step) {
    if (step + 1 < steps) start(step + 1);
    if (step + 1 < steps) {
      fault == 1 ? wait_copies<2>() : wait_copies<1>();  // 1: a stage is read too early
    } else {
      wait_copies<0>();
    }
    if (fault != 2) __syncthreads();  // 2: others' copies are read before they are there
    const __half* s_stage = s_rows + step % 2 * kRows * kPitch;
    const int row = fault == 4 ? lane ^ 1 : lane;  // 4: rows of the wrong lanes
    uint32_t a[4], b[2];
    load_matrices(a, s_stage + row % 16 * kPitch + row / 16 * 8);
    load_matrices(b, s_stage + (16 + lane % 8) * kPitch + lane / 8 % 2 * 8);
    mma<__half>(c, a, b);
    if (fault != 3) __syncthreads();  // 3: a stage is filled while others still read it
  }
  if (fault == 5) copy_async<16>(s_rows, p_a);  // 5: nobody waits for a copy
  if (threadIdx.x >= 32) return;
  for (int i = 0; i < 4; ++i) p_out[(lane / 4 + 8 * (i / 2)) * 8 + 2 * (lane % 4) + i % 2] = c[i];
}

// out = x, copied by kBytes at a time, where bytes[k] of them are real and the rest becomes zero.
template <int kBytes>
__global__ void copy_kernel(const unsigned char* p_x, const int* p_bytes, unsigned char* p_out) {
  ATTNOPS_DYNAMIC_SHARED(shared);
  const int k = threadIdx.x * kBytes;
  copy_async<kBytes>(shared + k, p_x + k, p_bytes[threadIdx.x]);
  commit_copies();
  wait_copies<0>();
  std::copy_n(shared + k, kBytes, p_out + k);
}

// Every block writes its sum, and after a barrier adds those of all; twice, to pass two barriers.
__global__ void grid_kernel(const float* p_x, unsigned* p_counter, int fault, float* p_sums,
                            float* p_out) {
  const unsigned blocks = gridDim.x;
  GridBarrier barrier(p_counter, fault == 2 ? blocks + 1 : blocks);  // 2: waits for ever
  float scale = p_x[blockIdx.x];
  for (int round = 0; round < 2; ++round) {
    if (threadIdx.x == 0) p_sums[round * blocks + blockIdx.x] = scale;
    if (round == 0) {
      barrier.wait();
    } else if (fault != 1) {  // 1: the second barrier is missing
      barrier.arrive();
      barrier.await();
    }
    float sum = 0;
    for (unsigned k = 0; k < blocks; ++k) sum += p_sums[round * blocks + k];
    scale = p_x[blockIdx.x] + sum;
  }
  p_out[blockIdx.x * blockDim.x + threadIdx.x] = scale;
}

template <bool kFinite>
void multiply_floats(const char* input, std::ostream& file) {
  Array<float> a(32 * 4), b(32 * 2), c(32 * 4);
  c.read(b.read(a.read(input)));
  ATTNOPS_LAUNCH((mma_3xtf32_kernel<kFinite>), dim3(1), dim3(32), 0, nullptr, a.data(), b.data(),
                 c.data());
  c.write(file);
}

template <typename T>
void multiply_fragments(const char* input, std::ostream& file) {
  Array<uint32_t> a(32 * 4), b(32 * 2);
  Array<float> c(32 * 4);
  c.read(b.read(a.read(input)));
  ATTNOPS_LAUNCH((mma_kernel<T>), dim3(1), dim3(32), 0, nullptr, a.data(), b.data(), c.data());
  c.write(file);
}

template <int kCount>
void load(bool transposed, const char* input, std::ostream& file) {
  Array<uint16_t> x(32 * 8);
  Array<uint32_t> out(32 * kCount);
  x.read(input);
  if (transposed) {
    ATTNOPS_LAUNCH((load_kernel<kCount, true>), dim3(1), dim3(32), 0, nullptr, x.data(),
                   out.data());
  } else {
    ATTNOPS_LAUNCH((load_kernel<kCount, false>), dim3(1), dim3(32), 0, nullptr, x.data(),
                   out.data());
  }
  out.write(file);
}

template <int kBytes>
void copy(const char* input, std::ostream& file) {
  Array<int> bytes(32);
  Array<unsigned char> x(32 * kBytes), out(32 * kBytes);
  x.read(bytes.read(input));
  ATTNOPS_LAUNCH((copy_kernel<kBytes>), dim3(1), dim3(32), 32 * kBytes, nullptr, x.data(),
                 bytes.data(), out.data());
  out.write(file);
}

void product(int steps, int fault, const char* input, std::ostream& file) {
  Array<__half> a(steps * 256), b(steps * 128);
  Array<float> out(128);
  b.read(a.read(input));
  ATTNOPS_LAUNCH(product_kernel, dim3(1), dim3(64), 0, nullptr, a.data(), b.data(), steps, fault,
                 out.data());
  out.write(file);
}

void grid(int blocks, int fault, const char* input, std::ostream& file) {
  Array<float> x(blocks), sums(2 * blocks), out(blocks * 32);
  Array<unsigned> counter(1);
  x.read(input);
  if (fault != 3) fill_zero(counter.data(), sizeof(unsigned), nullptr);  // 3: it starts anywhere
  ATTNOPS_LAUNCH_COOPERATIVE(grid_kernel, dim3(blocks), dim3(32), 0, nullptr, x.data(),
                             counter.data(), fault, sums.data(), out.data());
  out.write(file);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  const std::string request = read_file(argv[1]);
  const char* bytes = request.data();
  const auto [kernel, variant, fault] = take<Request>(bytes, 1)[0];
  std::ofstream file(argv[2], std::ios::binary);
  if (kernel == 0 && variant == 0) multiply_fragments<__half>(bytes, file);
  if (kernel == 0 && variant == 1) multiply_fragments<__nv_bfloat16>(bytes, file);
  if (kernel == 0 && variant == 2) multiply_fragments<Tf32>(bytes, file);
  if (kernel == 0 && variant == 3) multiply_floats<false>(bytes, file);
  if (kernel == 0 && variant == 4) multiply_floats<true>(bytes, file);
  if (kernel == 1 && variant / 2 == 1) load<1>(variant % 2, bytes, file);
  if (kernel == 1 && variant / 2 == 2) load<2>(variant % 2, bytes, file);
  if (kernel == 1 && variant / 2 == 4) load<4>(variant % 2, bytes, file);
  if (kernel == 2 && variant == 4) copy<4>(bytes, file);
  if (kernel == 2 && variant == 8) copy<8>(bytes, file);
  if (kernel == 2 && variant == 16) copy<16>(bytes, file);
  if (kernel == 3) product(variant, fault, bytes, file);
  if (kernel == 4) grid(variant, fault, bytes, file);
  return file.good() ? 0 : 1;
}
