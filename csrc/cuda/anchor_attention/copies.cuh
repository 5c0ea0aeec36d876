// Copies of anchor attention from global to shared memory, and the views of what they copy.
#pragma once

#include "cuda/common/copy.cuh"
#include "cuda/common/element.cuh"
#include "cuda/common/registers.cuh"
#include "plan.h"

namespace attnops::cuda {

// Terms of a sum, or channels of an output, that are in shared memory at a time.
template <typename T>
constexpr int kAnchorStep = kAnchorStepBytes / static_cast<int>(sizeof(T));

// Elements of 16 bytes: what rows in shared memory are apart beyond their length, so that eight
// neighbours of 16 bytes hit different banks.
template <typename T>
constexpr int kAnchorPad = kAccessBytes / static_cast<int>(sizeof(T));

// Rows of a map times terms of a sum over it, of one batch item: positions and channels, or, for
// the gradients of the anchors, channels and positions. Element (row, term) is at row * stride +
// term with terms_inner, else at term * stride + row.
template <typename T>
struct MapView {
  const T* p;
  int64_t stride;
  int rows, terms;
  bool terms_inner, wide;
};

// A table [lines, stride] of which `columns` columns count, read in pieces of `bytes`.
template <typename T>
struct TableView {
  const T* p;
  int64_t stride;
  int lines, columns, bytes;
};

// Threads beside each other on a line of so many pieces: a power of two.
template <int kPieces>
constexpr int kPiecesAcross = kPieces > 16  ? 32
                              : kPieces > 8 ? 16
                                            : 8;

// Starts s_to [kLines, pitch] = kColumns columns of kLines lines, `stride` apart; zero beyond
// `lines` and `columns`. Pieces of kBytes, of which neither line nor `columns` cuts one.
template <typename T, int kBytes, int kLines, int kColumns>
__device__ __forceinline__ void copy_lines(T* s_to, int pitch, const T* p_from, int64_t stride,
                                           int lines, int columns) {
  constexpr int kVec = kBytes / static_cast<int>(sizeof(T));
  constexpr int kPieces = kColumns / kVec;
  constexpr int kAcross = kPiecesAcross<kPieces>;
  constexpr int kAbreast = kAnchorThreads / kAcross;
  // Of float there are no registers left, and single halves are read, not copied.
  constexpr int kUnrolled = kBytes < 4 ? 1 : sizeof(T) == 4 ? 2 : 8;
  static_assert(kColumns % kVec == 0 && kLines % kAbreast == 0, "whole pieces and lines");
  const int thread = thread_now(), across = thread % kAcross * kVec, first = thread / kAcross;
  const T* p_line = p_from + first * stride + across;
  T* s_line = s_to + first * pitch + across;
#pragma unroll kUnrolled
  for (int line = first; line < kLines; line += kAbreast) {
#pragma unroll
    for (int column = 0; column < kColumns; column += kAcross * kVec) {
      if (kColumns % (kAcross * kVec) != 0 && across + column >= kColumns) continue;
      const bool inside = line < lines && across + column < columns;
      if constexpr (kBytes >= 4) {
        copy_async<kBytes>(s_line + column, inside ? p_line + column : p_from, inside ? kBytes : 0);
      } else {
        s_line[column] = inside ? p_line[column] : narrow<T>(0);
      }
    }
    p_line += kAbreast * stride;
    s_line += kAbreast * pitch;
  }
}

// A map in shared memory: [kAnchorRows, kAnchorStep + pad] with terms inner, else [kAnchorStep,
// kAnchorRows + 8].
template <typename T>
constexpr int kMapPitch = kAnchorStep<T> + kAnchorPad<T>;
constexpr int kMapTurnedPitch = kAnchorRows + 8;
template <typename T>
constexpr int kMapSize = kAnchorRows * kMapPitch<T>;

// A table in shared memory: [kAnchorStep, kAnchors + 8].
template <int kAnchors>
constexpr int kTablePitch = kAnchors + 8;
template <typename T, int kAnchors>
constexpr int kTableSize = kAnchorStep<T> * kTablePitch<kAnchors>;

// Starts the copies of rows [row, + kAnchorRows) and terms [term, + kAnchorStep) of a map.
template <typename T>
__device__ __forceinline__ void copy_map(const MapView<T>& map, int row, int term, int end,
                                         T* s_map) {
  constexpr int kStep = kAnchorStep<T>, kOne = sizeof(T);
  const int rows = map.rows - row, terms = min(end, map.terms) - term;
  if (map.terms_inner) {
    const T* p_from = map.p + row * map.stride + term;
    if (map.wide) {
      copy_lines<T, kAccessBytes, kAnchorRows, kStep>(s_map, kMapPitch<T>, p_from, map.stride, rows,
                                                      terms);
    } else {
      copy_lines<T, kOne, kAnchorRows, kStep>(s_map, kMapPitch<T>, p_from, map.stride, rows, terms);
    }
  } else {
    const T* p_from = map.p + term * map.stride + row;
    if (map.wide) {
      copy_lines<T, kAccessBytes, kStep, kAnchorRows>(s_map, kMapTurnedPitch, p_from, map.stride,
                                                      terms, rows);
    } else {
      copy_lines<T, kOne, kStep, kAnchorRows>(s_map, kMapTurnedPitch, p_from, map.stride, terms,
                                              rows);
    }
  }
}

// Starts the copies of lines [line, + kAnchorStep) of a table.
template <typename T, int kAnchors>
__device__ __forceinline__ void copy_table(const TableView<T>& table, int line, T* s_table) {
  const T* p_from = table.p + line * table.stride;
  const auto copy = [&](auto bytes) {
    copy_lines<T, decltype(bytes)::value, kAnchorStep<T>, kAnchors>(
        s_table, kTablePitch<kAnchors>, p_from, table.stride, table.lines - line, table.columns);
  };
  if (table.bytes == kAccessBytes) {
    copy(std::integral_constant<int, kAccessBytes>{});
  } else if (table.bytes == 2 * static_cast<int>(sizeof(T))) {
    copy(std::integral_constant<int, 2 * static_cast<int>(sizeof(T))>{});
  } else {
    copy(std::integral_constant<int, static_cast<int>(sizeof(T))>{});
  }
}

}  // namespace attnops::cuda
