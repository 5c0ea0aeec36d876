// Choice of the instruction set at run time. Plain declarations only, as in dtype.h.
#pragma once

#include "dtype.h"

namespace attnops::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The newest set that was compiled and that this processor has; the environment variable
// ATTNOPS_ISA (baseline, avx2, avx512, in any case), read at the first call, can only lower it.
// attnops/_backends/isa.py makes that call on import, and warns of other values.
Isa current_isa();

const char* isa_name(Isa isa);

// What multiplies bfloat16, in a word: "AMX", "AVX512_BF16" or "float32".
const char* bfloat16_products();

// Whether the current set is AVX-512 on a processor that also has AVX512_BF16.
bool multiplies_bfloat16();

// Whether it also has AMX, and the kernel lets this process use it. ATTNOPS_ISA=avx512 leaves AMX
// out.
bool multiplies_tiles();

// The compiled sets, oldest first, as the inside of a JSON list: "baseline", "avx2".
const char* compiled_isas();

// The kernels of an op are compiled once an instruction set, in a namespace of its name. There,
// table(dtype) returns the entry points for an element type; the op's host.h declares it,
#define ATTNOPS_DECLARE_KERNELS(Kernels, table) \
  namespace baseline {                          \
  const Kernels& table(DType dtype);            \
  }                                             \
  namespace avx2 {                              \
  const Kernels& table(DType dtype);            \
  }                                             \
  namespace avx512 {                            \
  const Kernels& table(DType dtype);            \
  }

// its kernels.cpp defines it, from Entries<S>::kernels,
#define ATTNOPS_DEFINE_KERNELS(Kernels, table, Entries) \
  const Kernels& table(DType dtype) {                   \
    switch (dtype) {                                    \
      case DType::kFloat64:                             \
        return Entries<double>::kernels;                \
      case DType::kFloat16:                             \
        return Entries<Half>::kernels;                  \
      case DType::kBFloat16:                            \
        return Entries<BFloat16>::kernels;              \
      default:                                          \
        return Entries<float>::kernels;                 \
    }                                                   \
  }

// and its host.cpp picks that of the current instruction set.
#if defined(ATTNOPS_HAVE_AVX512)
#define ATTNOPS_IF_AVX512(...) \
  if (::attnops::cpu::current_isa() == ::attnops::cpu::Isa::kAvx512) return __VA_ARGS__
#else
#define ATTNOPS_IF_AVX512(...)
#endif
#if defined(ATTNOPS_HAVE_AVX2)
#define ATTNOPS_IF_AVX2(...) \
  if (::attnops::cpu::current_isa() == ::attnops::cpu::Isa::kAvx2) return __VA_ARGS__
#else
#define ATTNOPS_IF_AVX2(...)
#endif
#define ATTNOPS_SELECT_KERNELS(table, dtype) \
  do {                                       \
    ATTNOPS_IF_AVX512(avx512::table(dtype)); \
    ATTNOPS_IF_AVX2(avx2::table(dtype));     \
    return baseline::table(dtype);           \
  } while (false)

}  // namespace attnops::cpu
