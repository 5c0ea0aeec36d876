// What this library was compiled with. Stands in a CUDA source because only nvcc's own passes know.
#define ATTNOPS_TEXT(...) #__VA_ARGS__
#define ATTNOPS_EXPANDED(...) ATTNOPS_TEXT(__VA_ARGS__)

// A JSON object: nvcc's version, the compute capabilities (times ten) and the torch ABI targeted.
extern "C" __attribute__((visibility("default"))) const char* attnops_cuda_build_info() {
  return "{\"nvcc\": \"" ATTNOPS_EXPANDED(__CUDACC_VER_MAJOR__) "." ATTNOPS_EXPANDED(
      __CUDACC_VER_MINOR__) "." ATTNOPS_EXPANDED(__CUDACC_VER_BUILD__)
         "\", \"host_compiler\": \"" __VERSION__
         "\", \"archs\": [" ATTNOPS_EXPANDED(__CUDA_ARCH_LIST__)
         "], \"torch_target_version\": \"" ATTNOPS_EXPANDED(TORCH_TARGET_VERSION) "\"}";
}
