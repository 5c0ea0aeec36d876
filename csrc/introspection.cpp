// attnops._C: what this machine's processor can do and what the install was compiled for.
//
// Part of source installs only, and nothing needs it: the libraries export the same facts about
// themselves as C functions. It is the one file that depends on a Python version.

#include <pybind11/pybind11.h>

#include <sstream>
#include <string>

namespace py = pybind11;

namespace {

std::string Compiler() {
#if defined(__clang__)
  return "clang " __clang_version__;
#elif defined(__GNUC__)
  return "gcc " __VERSION__;
#else
  return "unknown";
#endif
}

// Instruction sets as the running processor reports them (not as compiled).
py::dict CpuFeatures() {
  py::dict features;
#if defined(__x86_64__)
  __builtin_cpu_init();
  features["avx2"] = bool(__builtin_cpu_supports("avx2"));
  features["fma"] = bool(__builtin_cpu_supports("fma"));
  features["avx512f"] = bool(__builtin_cpu_supports("avx512f"));
  features["avx512bw"] = bool(__builtin_cpu_supports("avx512bw"));
  features["avx512vl"] = bool(__builtin_cpu_supports("avx512vl"));
  features["avx512dq"] = bool(__builtin_cpu_supports("avx512dq"));
#endif
  return features;
}

// "a;b" -> ("a", "b"): lists arrive from the build as one macro.
py::tuple Split(const char* list) {
  py::list items;
  std::istringstream stream(list);
  for (std::string item; std::getline(stream, item, ';');) items.append(item);
  return py::tuple(items);
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "What this processor can do and what attnops was compiled for.";
  m.def("compiler", &Compiler, "Compiler that built this module, with its version.");
  m.def(
      "pybind11_version", [] { return ATTNOPS_PYBIND11; },
      "Version of pybind11 that this module was built with.");
  m.def("cpu_features", &CpuFeatures,
        "Instruction sets of the running processor: {name: present}; empty if not x86-64.");
  m.def(
      "built_isas", [] { return Split(ATTNOPS_BUILT_ISAS); },
      "Instruction sets that the CPU library holds kernels for.");
  m.def(
      "built_archs", [] { return Split(ATTNOPS_BUILT_ARCHS); },
      "CUDA architectures that the CUDA library holds code for.");
}
