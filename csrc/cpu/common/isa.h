// Choice of the instruction set at run time.
#pragma once

namespace attnops::cpu {

enum class Isa { kBaseline, kAvx2, kAvx512 };

// The newest set that was compiled and that this processor has; the environment variable
// ATTNOPS_ISA (baseline, avx2, avx512), read at the first call, can only lower it.
Isa current_isa();

const char* isa_name(Isa isa);

// The compiled sets, oldest first, as the inside of a JSON list: "baseline", "avx2".
const char* compiled_isas();

// Picks the kernels of the current instruction set: table(dtype) is declared in each namespace.
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
