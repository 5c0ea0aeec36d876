// Emulated bodies of the wrappers of csrc/cuda/common: mma.cuh, copy.cuh, grid.cuh.
//
// Warp instructions exchange what all lanes hold, as shuffles do. The sum of an mma is exact but
// for its last step, which cuts it off to float as tensor cores do. Copies arrive when they are
// waited for, not earlier: until then what they will write is NaN.
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "cuda_emulation.h"

namespace attnops::cuda {
struct Tf32;
}

namespace attnops::emulation {

// As a default argument: the place in the kernel that called the wrapper.
inline Site caller(const char* what, const char* file = __builtin_FILE(),
                   int line = __builtin_LINE()) {
  return {what, file, line};
}

// What all lanes of the warp gave together.
template <typename T>
class Gifts {
 public:
  Gifts(Site site, const T& mine) : which_(machine().give(site, &mine, sizeof(T))) {
    static_assert(sizeof(T) <= Fiber::kGivenBytes, "too much for one exchange");
  }
  const T& operator[](int lane) const {
    return *reinterpret_cast<const T*>(machine().given(lane, which_));
  }

 private:
  unsigned which_;
};

inline float cut_off(double x) {
  const float nearest = static_cast<float>(x);
  if (!std::isfinite(x)) return nearest;
  return std::fabs(static_cast<double>(nearest)) > std::fabs(x) ? std::nextafter(nearest, 0.0f)
                                                                : nearest;
}

// Element `half` (0, 1) of a register, or all of it.
template <typename T>
double operand(uint32_t bits, int half) {
  if constexpr (std::is_same_v<T, cuda::Tf32>) return __uint_as_float(bits & ~0x1FFFu);
  if constexpr (std::is_same_v<T, __half>) {
    return c10::Half(static_cast<uint16_t>(bits >> 16 * half), c10::Half::from_bits());
  }
  if constexpr (std::is_same_v<T, __nv_bfloat16>) {
    return c10::BFloat16(static_cast<uint16_t>(bits >> 16 * half), c10::BFloat16::from_bits());
  }
}

struct Operands {
  uint32_t a[4], b[2];
};

// c += a b of this lane, from `a`[lane].a and `b`[lane].b.
template <typename T, typename A, typename B>
void multiply(float (&c)[4], const A& a, const B& b) {
  constexpr bool kWhole = std::is_same_v<T, cuda::Tf32>;
  constexpr int kWide = kWhole ? 1 : 2;  // elements of a register
  constexpr int kHalf = 4 * kWide;       // of K
  const int lane = machine().lane();
  for (int i = 0; i < 4; ++i) {
    const int row = lane / 4 + 8 * (i / 2), column = 2 * (lane % 4) + i % 2;
    double sum = c[i];
    for (int k = 0; k < 2 * kHalf; ++k) {
      const int quarter = k % kHalf / kWide, upper = k / kHalf;
      const uint32_t left = a(row % 8 * 4 + quarter)[row / 8 + 2 * upper];
      const uint32_t right = b(column * 4 + quarter)[upper];
      sum += operand<T>(left, k % kWide) * operand<T>(right, k % kWide);
    }
    c[i] = cut_off(sum);
  }
}

inline void require_aligned(const void* address, size_t bytes, const char* what) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    machine().fail(std::string("and gives ") + what + " an address that is not aligned");
  }
}

// Not inlined: the compiler would write a memset of constant size without telling the sanitizer.
__attribute__((noipa)) inline void fill(unsigned char* to, int value, int bytes) {
  std::memset(to, value, bytes);
}

inline void finish(const Copy& copy) {
  fill(copy.to, 0, copy.size);
  std::memcpy(copy.to, copy.from, copy.bytes);
}

}  // namespace attnops::emulation

namespace attnops::cuda {

template <typename T>
void mma(float (&c)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
         emulation::Site site = emulation::caller("mma")) {
  const emulation::Gifts<emulation::Operands> all(site, {{a[0], a[1], a[2], a[3]}, {b[0], b[1]}});
  emulation::multiply<T>(
      c, [&](int lane) { return all[lane].a; }, [&](int lane) { return all[lane].b; });
}

inline void mma_3xtf32(float (&c)[4], const uint32_t (&a_big)[4], const uint32_t (&a_small)[4],
                       const uint32_t (&b_big)[2], const uint32_t (&b_small)[2],
                       emulation::Site site = emulation::caller("mma_3xtf32")) {
  struct Parts {
    uint32_t a[2][4], b[2][2];
  };
  const emulation::Gifts<Parts> all(site, {{{a_big[0], a_big[1], a_big[2], a_big[3]},
                                            {a_small[0], a_small[1], a_small[2], a_small[3]}},
                                           {{b_big[0], b_big[1]}, {b_small[0], b_small[1]}}});
  for (const auto& [left, right] : {std::pair(1, 0), std::pair(0, 1), std::pair(0, 0)}) {
    emulation::multiply<Tf32>(
        c, [&, part = left](int lane) { return all[lane].a[part]; },
        [&, part = right](int lane) { return all[lane].b[part]; });
  }
}

inline uint32_t to_tf32(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof(bits));
  if (std::isnan(x)) return bits | 0x7FFFE000u;
  return std::isinf(x) ? bits : (bits + 0x1000u) & ~0x1FFFu;
}

template <int kCount, bool kTransposed = false>
void load_matrices(uint32_t (&r)[kCount], const void* row,
                   emulation::Site site = emulation::caller("ldmatrix")) {
  static_assert(kCount == 1 || kCount == 2 || kCount == 4, "ldmatrix loads 1, 2 or 4 matrices");
  const emulation::Gifts<const void*> rows(site, row);
  const int lane = emulation::machine().lane();
  if (lane < 8 * kCount) emulation::require_aligned(row, 16, "ldmatrix");
  for (int m = 0; m < kCount; ++m) {
    uint32_t pair[2];
    for (int k = 0; k < 2; ++k) {
      const int i = kTransposed ? 2 * (lane % 4) + k : lane / 4;
      const int j = kTransposed ? lane / 4 : 2 * (lane % 4) + k;
      pair[k] = static_cast<const uint16_t*>(rows[8 * m + i])[j];
    }
    r[m] = pair[0] | pair[1] << 16;
  }
}

template <int kBytes>
void copy_async(void* to, const void* from, int bytes = kBytes,
                emulation::Site site = emulation::caller("cp.async")) {
  static_assert(kBytes == 4 || kBytes == 8 || kBytes == 16, "cp.async copies 4, 8 or 16 bytes");
  emulation::machine().stand_at(site);
  emulation::require_aligned(to, kBytes, "cp.async");
  emulation::require_aligned(from, kBytes, "cp.async");
  if (bytes < 0 || bytes > kBytes) emulation::machine().fail("and copies more than the size");
  const emulation::Copy copy{static_cast<unsigned char*>(to),
                             static_cast<const unsigned char*>(from), bytes, kBytes};
  emulation::fill(copy.to, 0xFF, kBytes);
  emulation::machine().current().copies.back().push_back(copy);
}

inline void commit_copies() { emulation::machine().current().copies.emplace_back(); }

template <int kPending>
void wait_copies() {
  auto& groups = emulation::machine().current().copies;
  while (groups.size() > kPending + 1) {
    for (const auto& copy : groups.front()) emulation::finish(copy);
    groups.erase(groups.begin());
  }
}

class GridBarrier {
 public:
  GridBarrier(unsigned* counter, unsigned blocks) : counter_(counter), blocks_(blocks) {}
  void arrive(emulation::Site site = emulation::caller("GridBarrier::arrive")) {
    target_ += blocks_;
    emulation::machine().barrier(site);
    emulation::machine().arrive_at_grid(counter_);
  }
  void await(emulation::Site site = emulation::caller("GridBarrier::await")) {
    emulation::machine().await_grid(site, counter_, target_);
  }
  void wait(emulation::Site site = emulation::caller("GridBarrier::wait")) {
    arrive(site);
    await(site);
  }

 private:
  unsigned* counter_;
  unsigned blocks_;
  unsigned target_ = 0;
};

}  // namespace attnops::cuda
