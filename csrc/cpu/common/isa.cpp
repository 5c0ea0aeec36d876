#include "isa.h"

#include <algorithm>
#include <cstdlib>

namespace attnops::cpu {
namespace {

Isa newest() {
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
  return found;
}

// Whether `text` is `name`, which is in small letters, in any case.
bool names(const char* text, const char* name) {
  for (; *text != '\0'; ++text, ++name) {
    const char small = *text >= 'A' && *text <= 'Z' ? static_cast<char>(*text + 32) : *text;
    if (small != *name) return false;
  }
  return *name == '\0';
}

Isa choose() {
  const Isa found = newest();
  const char* wanted = std::getenv("ATTNOPS_ISA");
  if (wanted != nullptr)
    for (const Isa isa : {Isa::kBaseline, Isa::kAvx2, Isa::kAvx512})
      if (names(wanted, isa_name(isa))) return std::min(isa, found);
  return found;
}

}  // namespace

Isa current_isa() {
  static const Isa isa = choose();
  return isa;
}

bool multiplies_bfloat16() {
#if defined(__x86_64__) && defined(ATTNOPS_HAVE_AVX512)
  static const bool has = __builtin_cpu_supports("avx512bf16");
  return has && current_isa() == Isa::kAvx512;
#else
  return false;
#endif
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
