// Products in bfloat16 by the tiles of AMX: C[m, n] = sum_k A[m, k] B[k, n], sums in float.
//
// A tile is 16 rows of 64 bytes: 16 x 32 elements of A, 32 x 16 of B in pairs of terms
// [16][16][2], 16 x 16 sums. Blocks of up to 2 x 2 tiles of C are multiplied at a time, so that a
// tile that was read is used twice.
//
// The instructions are written out, as in bfloat16.h.
#pragma once

#include "bfloat16.h"

namespace attnops::cpu::ATTNOPS_ISA {

constexpr int64_t kTileRows = 16;
constexpr int64_t kTileDepth = 32;  // terms

#if defined(__AVX512F__)

// The tiles of this thread, 16 full rows each, as long as this lives; then what they were before,
// for others that use them too. Nothing where they are not `used`.
class TileRegisters {
 public:
  explicit TileRegisters(bool used) : used_(used) {
    if (!used) return;
    Setting ours = {};
    ours.palette = 1;
    for (int i = 0; i < 8; ++i) {
      ours.bytes[i] = 64;
      ours.rows[i] = kTileRows;
    }
    asm volatile("sttilecfg %0" : "=m"(before_));
    asm volatile("ldtilecfg %0" ::"m"(ours));
  }
  ~TileRegisters() {
    if (!used_) return;
    if (before_.palette == 0)
      asm volatile("tilerelease" :::);
    else
      asm volatile("ldtilecfg %0" ::"m"(before_));
  }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;

 private:
  struct Setting {
    uint8_t palette, start_row, reserved[14];
    uint16_t bytes[16];
    uint8_t rows[16];
  };
  const bool used_;
  Setting before_ = {};
};

template <int kTile>
ATTNOPS_INLINE void clear_tile() {
  asm volatile("tilezero %%tmm%c0" ::"i"(kTile));
}
// Rows `bytes` apart.
template <int kTile>
ATTNOPS_INLINE void load_tile(const void* p, int64_t bytes) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" ::"r"(p), "r"(bytes), "i"(kTile) : "memory");
}
template <int kTile>
ATTNOPS_INLINE void store_tile(void* p, int64_t bytes) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" ::"r"(p), "r"(bytes), "i"(kTile) : "memory");
}
template <int kSums, int kLeft, int kRight>
ATTNOPS_INLINE void add_tile_products() {
  asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" ::"i"(kSums), "i"(kLeft), "i"(kRight));
}

// Tiles 0 to 3 hold the sums of a block, 4 and 5 tiles of A, 6 and 7 of B.
template <int kM, int kN>
ATTNOPS_INLINE void clear_tile_block() {
  clear_tile<0>();
  if (kN > 1) clear_tile<1>();
  if (kM > 1) clear_tile<2>();
  if (kM > 1 && kN > 1) clear_tile<3>();
}
// The first bytes of each tile, whose rows are as far apart as the strides say.
template <int kM, int kN>
ATTNOPS_INLINE void multiply_tile_block(const void* const (&a)[2], int64_t a_bytes,
                                        const void* const (&b)[2], int64_t b_bytes) {
  load_tile<6>(b[0], b_bytes);
  load_tile<4>(a[0], a_bytes);
  add_tile_products<0, 4, 6>();
  if (kN > 1) {
    load_tile<7>(b[1], b_bytes);
    add_tile_products<1, 4, 7>();
  }
  if (kM > 1) {
    load_tile<5>(a[1], a_bytes);
    add_tile_products<2, 5, 6>();
    if (kN > 1) add_tile_products<3, 5, 7>();
  }
}
// The same of floats in parts (float_parts.h), which are as many bytes apart as a_part and b_part
// say: six products, between two of which the tiles of one factor stay.
template <int kM, int kN>
ATTNOPS_INLINE void multiply_tile_parts(const char* const (&a)[2], int64_t a_part, int64_t a_bytes,
                                        const char* const (&b)[2], int64_t b_part,
                                        int64_t b_bytes) {
  const auto load_left = [&](int64_t part) __attribute__((always_inline)) {
    load_tile<4>(a[0] + part * a_part, a_bytes);
    if (kM > 1) load_tile<5>(a[1] + part * a_part, a_bytes);
  };
  const auto load_right = [&](int64_t part) __attribute__((always_inline)) {
    load_tile<6>(b[0] + part * b_part, b_bytes);
    if (kN > 1) load_tile<7>(b[1] + part * b_part, b_bytes);
  };
  const auto add = []() __attribute__((always_inline)) {
    add_tile_products<0, 4, 6>();
    if (kN > 1) add_tile_products<1, 4, 7>();
    if (kM > 1) add_tile_products<2, 5, 6>();
    if (kM > 1 && kN > 1) add_tile_products<3, 5, 7>();
  };
  load_left(2);
  load_right(0);
  add();
  load_left(0);
  add();
  load_right(2);
  add();
  load_right(1);
  add();
  load_left(1);
  add();
  load_right(0);
  add();
}
// Sums in rows of `stride` elements; with stride 0 the same row for all.
template <int kM, int kN>
ATTNOPS_INLINE void load_tile_block(const float* sums, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  load_tile<0>(sums, bytes);
  if (kN > 1) load_tile<1>(sums + kTileRows, bytes);
  if (kM > 1) load_tile<2>(sums + kTileRows * stride, bytes);
  if (kM > 1 && kN > 1) load_tile<3>(sums + kTileRows * stride + kTileRows, bytes);
}
template <int kM, int kN>
ATTNOPS_INLINE void store_tile_block(float* sums, int64_t stride) {
  const int64_t bytes = stride * static_cast<int64_t>(sizeof(float));
  store_tile<0>(sums, bytes);
  if (kN > 1) store_tile<1>(sums + kTileRows, bytes);
  if (kM > 1) store_tile<2>(sums + kTileRows * stride, bytes);
  if (kM > 1 && kN > 1) store_tile<3>(sums + kTileRows * stride + kTileRows, bytes);
}

// Some processors wait 250 ns for the next store of a tile if they have stored none for about 30
// products of 2 x 2 tiles, as long as for 10 of them. Between products this stores one that nobody
// reads.
class TileStores {
 public:
  inline __attribute__((always_inline)) void expect(int64_t products) {
    if ((since_ += products) <= kMost) return;
    store_tile<7>(unused_, 64);
    since_ = products;
  }

 private:
  static constexpr int64_t kMost = 18;
  int64_t since_ = 0;
  alignas(64) char unused_[kTileRows * 64];
};

// body.run<kM, kN>(m, n) for blocks of tiles that cover `rows` x `columns`, with kColumnsOuter
// those of the same columns one after another.
template <bool kColumnsOuter, class Body>
static void for_tile_blocks(int64_t rows, int64_t columns, const Body& body) {
  constexpr int64_t kStep = 2 * kTileRows;
  const auto run = [&](int64_t m, int64_t n) __attribute__((always_inline)) {
    const bool tall = rows - m > kTileRows, wide = columns - n > kTileRows;
    if (tall && wide)
      body.template run<2, 2>(m, n);
    else if (tall)
      body.template run<2, 1>(m, n);
    else if (wide)
      body.template run<1, 2>(m, n);
    else
      body.template run<1, 1>(m, n);
  };
  if (kColumnsOuter) {
    for (int64_t n = 0; n < columns; n += kStep)
      for (int64_t m = 0; m < rows; m += kStep) run(m, n);
  } else {
    for (int64_t m = 0; m < rows; m += kStep)
      for (int64_t n = 0; n < columns; n += kStep) run(m, n);
  }
}

#endif

}  // namespace attnops::cpu::ATTNOPS_ISA
