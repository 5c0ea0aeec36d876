// The pair of every output along one axis of a bilinear resize, as tables.
#pragma once

#include <cstdint>

namespace attnops::cpu {

// in[first[i]] and in[second[i]] make output i, the second with weight[i] (a float's value where
// maps are not float64).
struct ResizeAxis {
  int64_t inputs, outputs;
  const int64_t *first, *second;  // [outputs]
  const double* weight;           // [outputs]
};

}  // namespace attnops::cpu
