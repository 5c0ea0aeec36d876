// Element types of the CPU kernels. Plain declarations only: the vector code of every instruction
// set includes this file, and an inline function emitted there could be picked by the linker for
// callers on older machines.
#pragma once

#include <cstdint>

namespace attnops::cpu {

enum class DType { kFloat32, kFloat64, kFloat16, kBFloat16 };

// Storage only; arithmetic happens in float.
struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

}  // namespace attnops::cpu
