// One axis of a bilinear resize, in PyTorch's arithmetic. Shared by the CPU and the CUDA kernels.
//
// T is float for float32, float16 and bfloat16 maps and double for float64, as in PyTorch; other
// types would round positions differently.
#pragma once

#include <cmath>
#include <cstdint>

#include "host_device.h"

namespace attnops {

// The two inputs that an output reads: (1 - weight) * in[first] + weight * in[second]. Where the
// second weighs nothing, both are the first one, a half each: a neighbour of weight 0 is not read,
// and nothing is multiplied by 0, which would make NaN of infinity.
template <class T>
struct ResizePair {
  int64_t first, second;
  T weight;
};

// Inputs an output apart.
template <class T>
ATTNOPS_HOST_DEVICE T resize_scale(int64_t inputs, int64_t outputs, bool align_corners) {
  if (!align_corners) return static_cast<T>(inputs) / static_cast<T>(outputs);
  return outputs > 1 ? static_cast<T>(inputs - 1) / static_cast<T>(outputs - 1) : T(0);
}

template <class T>
ATTNOPS_HOST_DEVICE ResizePair<T> resize_pair(int64_t output, int64_t inputs, int64_t outputs,
                                              T scale, bool align_corners) {
  if (inputs == outputs) return {output, output, T(0.5)};
  // Rounded once, as compilers with fused multiply-adds make it of PyTorch's formula: rounding the
  // product as well costs up to half a unit of the position, which is large beside the weight.
  T position = align_corners ? scale * static_cast<T>(output)
                             : std::fma(scale, static_cast<T>(output) + T(0.5), T(-0.5));
  if (position < T(0)) position = T(0);
  int64_t first = static_cast<int64_t>(position);
  if (first > inputs - 1) first = inputs - 1;
  T weight = position - static_cast<T>(first);
  weight = weight > T(1) ? T(1) : weight;
  if (weight == T(0)) return {first, first, T(0.5)};
  return {first, first + (first < inputs - 1), weight};
}

}  // namespace attnops
