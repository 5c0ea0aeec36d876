// The facts about this build.
#include <string>

#include "isa.h"

#define ATTNOPS_STRINGIFY(x) #x
#define ATTNOPS_STRING(x) ATTNOPS_STRINGIFY(x)
#if defined(__clang__)
#define ATTNOPS_COMPILER "clang " __clang_version__
#else
#define ATTNOPS_COMPILER "gcc " __VERSION__
#endif

// JSON: what was compiled and what runs. The pointer stays valid.
extern "C" __attribute__((visibility("default"))) const char* attnops_cpu_build_info() {
  static const std::string info =
      std::string("{\"compiler\": \"" ATTNOPS_COMPILER "\", \"isas\": [") +
      attnops::cpu::compiled_isas() + "], \"isa\": \"" +
      attnops::cpu::isa_name(attnops::cpu::current_isa()) + "\", \"bfloat16\": \"" +
      attnops::cpu::bfloat16_products() +
      "\", \"torch_target_version\": \"" ATTNOPS_STRING(TORCH_TARGET_VERSION) "\"}";
  return info.c_str();
}
