#include "isa.h"

#include <cstdlib>
#include <cstring>

namespace attnops::cpu {
namespace {

Isa detect() {
  Isa found = Isa::kBaseline;
#if defined(__x86_64__)
  __builtin_cpu_init();
#if defined(ATTNOPS_HAVE_AVX2)
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
      __builtin_cpu_supports("f16c"))
    found = Isa::kAvx2;
#endif
#if defined(ATTNOPS_HAVE_AVX512)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    found = Isa::kAvx512;
#endif
#endif
  const char* wanted = std::getenv("ATTNOPS_ISA");
  if (wanted != nullptr) {
    if (std::strcmp(wanted, "baseline") == 0) return Isa::kBaseline;
#if defined(ATTNOPS_HAVE_AVX2)
    if (std::strcmp(wanted, "avx2") == 0 && found == Isa::kAvx512) return Isa::kAvx2;
#endif
  }
  return found;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = detect();
  return isa;
}

const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

const char* compiled_isas() {
  return "\"baseline\""
#if defined(ATTNOPS_HAVE_AVX2)
         ", \"avx2\""
#endif
#if defined(ATTNOPS_HAVE_AVX512)
         ", \"avx512\""
#endif
      ;
}

}  // namespace attnops::cpu
