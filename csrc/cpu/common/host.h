// Helpers of the host entries: element types, scratch memory, threads.
//
// Every op's host.cpp ends with its schemas and their implementations. Callers guarantee
// consistent, non-empty shapes and one dtype; maps (all of local attention but lse; else x, grad,
// query, out) are dense, contiguous or with contiguous channels; everything else is contiguous.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <optional>

#include "dtype.h"
#include "scratch.h"

namespace attnops::cpu {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline DType dtype_of(const Tensor& x) {
  switch (x.scalar_type()) {
    case ScalarType::Float:
      return DType::kFloat32;
    case ScalarType::Double:
      return DType::kFloat64;
    case ScalarType::Half:
      return DType::kFloat16;
    case ScalarType::BFloat16:
      return DType::kBFloat16;
    default:
      STD_TORCH_CHECK(false, "expected float32, float64, float16 or bfloat16, got ",
                      torch::headeronly::toString(x.scalar_type()));
  }
}

// An uninitialised tensor, with the dtype of `like` if none is given. A large one is new memory
// from the kernel, and taking it page by page can cost as much as writing it, so huge pages are
// asked for; where they are not to be had, nothing changes.
inline Tensor new_output(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef sizes,
                         std::optional<ScalarType> dtype = std::nullopt) {
  Tensor out = torch::stable::new_empty(like, sizes, dtype);
#if defined(MADV_HUGEPAGE)
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  const uintptr_t data = reinterpret_cast<uintptr_t>(out.mutable_data_ptr());
  const uintptr_t begin = (data + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (data + out.numel() * out.element_size()) / kHuge * kHuge;
  if (end > begin + kHuge) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
  return out;
}

// Whether a call that writes so many maps like `map` should store past the caches. What is written
// up to here is likely to be read again from the last-level cache, or to be written there again;
// beyond, it drives out the inputs, and lines are read only to be overwritten.
inline bool is_streamed(const Tensor& map, int64_t outputs) {
  constexpr int64_t kCached = int64_t{6} << 20;
  return outputs * map.numel() * static_cast<int64_t>(map.element_size()) > kCached;
}

// Bytes of the second-level cache of a core; a megabyte where the system does not tell.
inline int64_t second_level_cache() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE);
  if (bytes > 0) return bytes;
#endif
  return int64_t{1} << 20;
}

inline int64_t thread_count() { return torch::stable::get_num_threads(); }

// Calls body(w) for w in [0, workers), one worker a thread where threads are free. body must not
// throw: an exception would have to cross the boundary of the parallel region.
template <class Body>
void for_each_worker(int64_t workers, const Body& body) {
  torch::stable::parallel_for(0, workers, 1, [&](int64_t begin, int64_t end) noexcept {
    for (int64_t w = begin; w < end; ++w) body(w);
  });
}

}  // namespace attnops::cpu
