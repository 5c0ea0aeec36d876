// The two products of anchor attention on tensor cores, of a block of 4 warps; float by 3xTF32:
// numbers that are not finite, or beyond 2^114, become NaN.
//
//   accumulate:  sum[row, s] += sum over terms of map[row, term] table[term, s]
//   multiply:    out[row, c] = factor * sum over s of weights[row, s] table[c, s]
//
// A warp owns 32 rows and all anchors. The sums of a lane (g = lane / 4, t = lane % 4) are
// sum[m][j][i]: row 16 m + g + 8 (i / 2), anchor 8 j + 2 t + i % 2; they are the left factor of
// `multiply` where they are. Sums of float that tensor cores cut off are kept to 16 terms.
#pragma once

#include "copies.cuh"
#include "cuda/common/mma.cuh"

namespace attnops::cuda {

template <int kAnchors>
using Scores = float[2][kAnchors / 8][4];

// Shared memory of a block: two stages of a map and a table each; after that, two of a table, and
// 32 rows of output of each warp.
template <typename T, int kAnchors>
constexpr size_t kAnchorSharedBytes = sizeof(T) * 2 * (kMapSize<T> + kTableSize<T, kAnchors>);

struct Place {
  int thread = thread_now();
  int warp = thread / 32, lane = thread % 32;
  int g = lane / 4, t = lane % 4;
};

// For chunk < chunks: start(chunk, stage) begins its copies, and use(chunk, stage) follows when
// they are there. Ends with a barrier.
template <typename Start, typename Use>
__device__ __forceinline__ void staged(int chunks, const Start& start, const Use& use) {
#pragma unroll 1
  for (int chunk = 0; chunk <= chunks; ++chunk) {
    if (chunk < chunks) start(chunk, chunk % 2);
    commit_copies();
    if (chunk == 0) continue;
    wait_copies<1>();
    __syncthreads();
    use(chunk - 1, (chunk - 1) % 2);
    __syncthreads();
  }
}

// 16 terms of a warp's 32 rows, from term k of a stage on: half precision.
template <typename T, int kAnchors>
__device__ __forceinline__ void add_terms(const T* s_map, bool terms_inner, const T* s_table, int k,
                                          Scores<kAnchors>& sum) {
  const Place at;
  uint32_t a[2][4];
#pragma unroll
  for (int m = 0; m < 2; ++m) {
    const int row = 32 * at.warp + 16 * m;
    if (terms_inner) {
      load_matrices<4>(a[m], s_map + (row + at.lane % 16) * kMapPitch<T> + k + at.lane / 16 * 8);
    } else {
      load_matrices<4, true>(a[m], s_map + (k + at.lane % 8 + at.lane / 16 * 8) * kMapTurnedPitch +
                                       row + at.lane / 8 % 2 * 8);
    }
  }
#pragma unroll
  for (int pair = 0; pair < kAnchors / 16; ++pair) {
    uint32_t b[4];
    load_matrices<4, true>(
        b, s_table + (k + at.lane % 16) * kTablePitch<kAnchors> + 16 * pair + at.lane / 16 * 8);
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      const uint32_t column[2] = {b[2 * j], b[2 * j + 1]};
#pragma unroll
      for (int m = 0; m < 2; ++m) mma<T>(sum[m][2 * pair + j], a[m], column);
    }
  }
}

template <int kCount>
__device__ __forceinline__ void split_all(const float (&x)[kCount], uint32_t (&big)[kCount],
                                          uint32_t (&small)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) split_finite_tf32(x[i], big[i], small[i]);
}

// c[m][j] += a[m] b[j], with the products that depend on each other apart.
template <int kRows, int kColumns>
__device__ __forceinline__ void multiply_split(float (&c)[kRows][kColumns][4],
                                               const uint32_t (&a_big)[kRows][4],
                                               const uint32_t (&a_small)[kRows][4],
                                               const uint32_t (&b_big)[kColumns][2],
                                               const uint32_t (&b_small)[kColumns][2]) {
#pragma unroll
  for (int part = 0; part < 3; ++part) {
#pragma unroll
    for (int j = 0; j < kColumns; ++j) {
#pragma unroll
      for (int m = 0; m < kRows; ++m) {
        mma<Tf32>(c[m][j], part == 0 ? a_small[m] : a_big[m], part == 1 ? b_small[j] : b_big[j]);
      }
    }
  }
}

// The same of float.
template <int kAnchors>
__device__ __forceinline__ void add_terms(const float* s_map, bool terms_inner,
                                          const float* s_table, int k, Scores<kAnchors>& sum) {
  const Place at;
  const int row_step = terms_inner ? kMapPitch<float> : 1;
  const int term_step = terms_inner ? 1 : kMapTurnedPitch;
  const float* s_rows = s_map + (32 * at.warp + at.g) * row_step + (k + at.t) * term_step;
  uint32_t a_big[2][2][4], a_small[2][2][4];
#pragma unroll
  for (int half = 0; half < 2; ++half) {
#pragma unroll
    for (int m = 0; m < 2; ++m) {
      float a[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        a[i] = s_rows[(16 * m + i % 2 * 8) * row_step + (8 * half + i / 2 * 4) * term_step];
      }
      split_all(a, a_big[half][m], a_small[half][m]);
    }
  }
  const float* s_columns = s_table + (k + at.t) * kTablePitch<kAnchors> + at.g;
#pragma unroll
  for (int pair = 0; pair < kAnchors / 16; ++pair) {
    float c[2][2][4] = {};
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      uint32_t b_big[2][2], b_small[2][2];
#pragma unroll
      for (int j = 0; j < 2; ++j) {
        float b[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          b[i] = s_columns[(8 * half + 4 * i) * kTablePitch<kAnchors> + 16 * pair + 8 * j];
        }
        split_all(b, b_big[j], b_small[j]);
      }
      multiply_split(c, a_big[half], a_small[half], b_big, b_small);
    }
#pragma unroll
    for (int m = 0; m < 2; ++m) {
#pragma unroll
      for (int j = 0; j < 2; ++j) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[m][2 * pair + j][i] += c[m][j][i];
      }
    }
  }
}

// sum = rows [row, + kAnchorRows) of the map times the table, over terms [begin, end).
template <typename T, int kAnchors>
__device__ __forceinline__ void accumulate(const MapView<T>& map, const TableView<T>& table,
                                           int row, int begin, int end, T* s_memory,
                                           Scores<kAnchors>& sum) {
  constexpr int kStep = kAnchorStep<T>, kStage = kMapSize<T> + kTableSize<T, kAnchors>;
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int j = 0; j < kAnchors / 8; ++j) {
#pragma unroll
      for (int i = 0; i < 4; ++i) sum[m][j][i] = 0;
    }
  }
  staged((end - begin + kStep - 1) / kStep,
         [&](int chunk, int stage) {
           T* s_map = s_memory + stage * kStage;
           copy_map(map, row, begin + chunk * kStep, end, s_map);
           copy_table<T, kAnchors>(table, begin + chunk * kStep, s_map + kMapSize<T>);
         },
         [&](int, int stage) {
           const T* s_map = s_memory + stage * kStage;
           if constexpr (sizeof(T) == 4) {
#pragma unroll 1
             for (int k = 0; k < kStep; k += 16) {
               add_terms<kAnchors>(s_map, map.terms_inner, s_map + kMapSize<T>, k, sum);
             }
           } else {
#pragma unroll
             for (int k = 0; k < kStep; k += 16) {
               add_terms<T, kAnchors>(s_map, map.terms_inner, s_map + kMapSize<T>, k, sum);
             }
           }
         });
}

// Two numbers as the halves of a register.
template <typename T>
__device__ __forceinline__ uint32_t pack(float low, float high) {
  const Vector<T, 2> pair{{narrow<T>(low), narrow<T>(high)}};
  uint32_t bits;
  memcpy(&bits, &pair, sizeof(bits));
  return bits;
}

// Scores as the left factor of `multiply`: those of half precision packed.
template <typename T, int kAnchors>
struct Weights {
  uint32_t a[kAnchors / 16][2][4];

  __device__ __forceinline__ explicit Weights(const Scores<kAnchors>& x) {
#pragma unroll
    for (int k = 0; k < kAnchors / 16; ++k) {
#pragma unroll
      for (int m = 0; m < 2; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const auto& tile = x[m][2 * k + i / 2];
          a[k][m][i] = pack<T>(tile[i % 2 * 2], tile[i % 2 * 2 + 1]);
        }
      }
    }
  }

  // out[m][n]: rows times the channels 8 n + (0 .. 7) of a stage.
  __device__ __forceinline__ void times(const T* s_table, int,
                                        float (&out)[2][kAnchorStep<T> / 8][4]) const {
    const Place at;
#pragma unroll
    for (int k = 0; k < kAnchors / 16; ++k) {
#pragma unroll
      for (int n = 0; n < kAnchorStep<T> / 8; n += 2) {
        uint32_t b[4];
        load_matrices<4>(b, s_table +
                                (8 * n + at.lane % 8 + at.lane / 16 * 8) * kTablePitch<kAnchors> +
                                16 * k + at.lane / 8 % 2 * 8);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const uint32_t column[2] = {b[2 * j], b[2 * j + 1]};
#pragma unroll
          for (int m = 0; m < 2; ++m) mma<T>(out[m][n + j], a[k][m], column);
        }
      }
    }
  }
};

// Of float the scores themselves. Two neighbours of a lane stand for the terms t and t + 4 of a
// product: the order of a sum's terms is free.
template <int kAnchors>
struct Weights<float, kAnchors> {
  const Scores<kAnchors>& x;

  __device__ __forceinline__ explicit Weights(const Scores<kAnchors>& scores) : x(scores) {}

  __device__ __forceinline__ void times(const float* s_table, int anchors,
                                        float (&out)[2][kAnchorStep<float> / 8][4]) const {
    const Place at;
    const float* s_columns = s_table + at.g * kTablePitch<kAnchors> + 2 * at.t;
#pragma unroll
    for (int k = 0; k < kAnchors / 8; ++k) {
      // Also keeps the compiler from loading for later steps: registers are few.
      if (8 * k >= anchors) break;
      uint32_t a_big[2][4], a_small[2][4];
#pragma unroll
      for (int m = 0; m < 2; ++m) {
        const float a[4] = {forgotten(x[m][k][0]), forgotten(x[m][k][2]), forgotten(x[m][k][1]),
                            forgotten(x[m][k][3])};
        split_all(a, a_big[m], a_small[m]);
      }
#pragma unroll
      for (int n = 0; n < kAnchorStep<float> / 8; n += 2) {
        uint32_t b_big[2][2], b_small[2][2];
#pragma unroll
        for (int j = 0; j < 2; ++j) {
          const float2 pair = *reinterpret_cast<const float2*>(
              s_columns + 8 * (n + j) * kTablePitch<kAnchors> + 8 * k);
          const float b[2] = {pair.x, pair.y};
          split_all(b, b_big[j], b_small[j]);
        }
        float c[2][2][4] = {};
        multiply_split(c, a_big, a_small, b_big, b_small);
#pragma unroll
        for (int m = 0; m < 2; ++m) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
#pragma unroll
            for (int i = 0; i < 4; ++i) out[m][n + j][i] += c[m][j][i];
          }
        }
      }
    }
  }
};

// An output map of one batch item: element (position, channel) is at position * channels + channel
// with channels_inner, else at channel * positions + position.
template <typename T>
struct OutView {
  T* p;
  int positions, channels;
  bool channels_inner, wide;
};

// kColumns columns of kLines lines of s_from [kLines, pitch] to p_to, of one warp.
template <typename T, int kVec, int kLines, int kColumns>
__device__ __forceinline__ void store_lines(const T* s_from, T* p_to, int64_t stride, int lines,
                                            int columns) {
  constexpr int kPitch = kColumns + kAnchorPad<T>, kPieces = kColumns / kVec;
  constexpr int kAcross = kPieces < 32 ? kPieces : 32, kAbreast = 32 / kAcross;
  const int lane = thread_now() % 32, across = lane % kAcross * kVec, first = lane / kAcross;
#pragma unroll 2
  for (int line = first; line < kLines; line += kAbreast) {
#pragma unroll
    for (int column = across; column < kColumns; column += kAcross * kVec) {
      if (line >= lines || column >= columns) continue;
      *reinterpret_cast<Vector<T, kVec>*>(p_to + line * stride + column) =
          *reinterpret_cast<const Vector<T, kVec>*>(s_from + line * kPitch + column);
    }
  }
}

// Writes a warp's 32 positions, from `position` on, of channels [channel, + kAnchorStep), by way of
// its part of shared memory.
template <typename T>
__device__ __forceinline__ void store_out(const OutView<T>& to, int position, int channel,
                                          float factor,
                                          const float (&out)[2][kAnchorStep<T> / 8][4], T* s_out) {
  constexpr int kStep = kAnchorStep<T>, kPitch = kStep + kAnchorPad<T>;
  constexpr int kTurnedPitch = 32 + kAnchorPad<T>;
  const Place at;
  __syncwarp();
#pragma unroll
  for (int m = 0; m < 2; ++m) {
#pragma unroll
    for (int n = 0; n < kStep / 8; ++n) {
#pragma unroll
      for (int i = 0; i < 4; i += 2) {
        const int row = 16 * m + at.g + 4 * i, column = 8 * n + 2 * at.t;
        const Vector<T, 2> pair{
            {narrow<T>(factor * out[m][n][i]), narrow<T>(factor * out[m][n][i + 1])}};
        if (to.channels_inner) {
          *reinterpret_cast<Vector<T, 2>*>(s_out + row * kPitch + column) = pair;
        } else {
          s_out[column * kTurnedPitch + row] = pair.value[0];
          s_out[(column + 1) * kTurnedPitch + row] = pair.value[1];
        }
      }
    }
  }
  __syncwarp();
  constexpr int kVec = kAccessBytes / static_cast<int>(sizeof(T));
  const int positions = to.positions - position, channels = to.channels - channel;
  if (to.channels_inner) {
    T* p_to = to.p + int64_t{position} * to.channels + channel;
    if (to.wide) {
      store_lines<T, kVec, 32, kStep>(s_out, p_to, to.channels, positions, channels);
    } else {
      store_lines<T, 1, 32, kStep>(s_out, p_to, to.channels, positions, channels);
    }
  } else {
    T* p_to = to.p + int64_t{channel} * to.positions + position;
    if (to.wide) {
      store_lines<T, kVec, kStep, 32>(s_out, p_to, to.positions, channels, positions);
    } else {
      store_lines<T, 1, kStep, 32>(s_out, p_to, to.positions, channels, positions);
    }
  }
}

// The output of this block's positions is factor * weights table^T, of so many channels. table()
// and out() give the views, row() the first position: called for every step, not kept.
template <typename T, int kAnchors, typename Table, typename Out, typename Row>
__device__ __forceinline__ void multiply(const Weights<T, kAnchors>& weights, int channels,
                                         const Table& table, const Out& out, const Row& row,
                                         float factor, T* s_memory) {
  constexpr int kStep = kAnchorStep<T>, kTable = kTableSize<T, kAnchors>;
  constexpr int kOut = kStep * (32 + kAnchorPad<T>);  // at least 32 * (kStep + kAnchorPad)
  static_assert(sizeof(T) * (2 * kTable + 4 * kOut) <= kAnchorSharedBytes<T, kAnchors>,
                "tables and outputs fit where maps and tables were");
  staged((channels + kStep - 1) / kStep,
         [&](int chunk, int stage) {
           copy_table<T, kAnchors>(table(), chunk * kStep, s_memory + stage * kTable);
         },
         [&](int chunk, int stage) {
           float sum[2][kStep / 8][4] = {};
           weights.times(s_memory + stage * kTable, table().columns, sum);
           const int warp = thread_now() / 32;
           store_out<T>(out(), row() + 32 * warp, chunk * kStep, factor, sum,
                        s_memory + 2 * kTable + warp * kOut);
         });
}

}  // namespace attnops::cuda
