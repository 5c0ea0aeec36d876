#include "isa.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

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

const char* wanted_isa() { return std::getenv("ATTNOPS_ISA"); }

// Whether the processor has AMX with bfloat16, and the kernel keeps the registers of this process.
bool has_tiles() {
#if defined(__x86_64__) && defined(__linux__)
  unsigned a, b, c, d, low, high;
  constexpr unsigned kOsXsave = 1u << 27;                           // of leaf 1, c
  constexpr unsigned kBFloat16 = 1u << 22, kTiles = 1u << 24;       // of leaf 7, d
  constexpr unsigned kTileConfig = 1u << 17, kTileData = 1u << 18;  // of XCR0
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & kOsXsave)) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || !(d & kBFloat16) || !(d & kTiles)) return false;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  if (!(low & kTileConfig) || !(low & kTileData)) return false;
  constexpr int kRequestPermission = 0x1023, kTileDataComponent = 18;  // of arch_prctl
  return syscall(SYS_arch_prctl, kRequestPermission, kTileDataComponent) == 0;
#else
  return false;
#endif
}

Isa choose() {
  const Isa found = newest();
  const char* wanted = wanted_isa();
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

bool multiplies_tiles() {
  static const bool has = [] {
    const char* wanted = wanted_isa();
    return multiplies_bfloat16() && !(wanted && names(wanted, isa_name(Isa::kAvx512))) &&
           has_tiles();
  }();
  return has;
}

const char* isa_name(Isa isa) {
  return isa == Isa::kAvx512 ? "avx512" : isa == Isa::kAvx2 ? "avx2" : "baseline";
}

const char* bfloat16_products() {
  return multiplies_tiles() ? "AMX" : multiplies_bfloat16() ? "AVX512_BF16" : "float32";
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
