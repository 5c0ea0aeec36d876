// Stores past the caches, for maps that are larger than what the caches hold of them until they are
// read. An ordinary store first reads the line that it overwrites, and pushes out another that may
// be wanted sooner.
#pragma once

#include "vec.h"

namespace attnops::cpu::ATTNOPS_ISA {

#if defined(__AVX2__)
template <class S>
constexpr bool kStreams = sizeof(S) >= 4;  // whole vectors
#else
template <class S>
constexpr bool kStreams = false;
#endif

template <bool kStreamed>
struct Storing {
  static constexpr bool value = kStreamed;
};

// A whole vector; streamed, to an address that is a multiple of its size.
template <bool kStreamed, class S>
ATTNOPS_INLINE void put(S* p, typename Vec<Compute<S>>::V v) {
#if defined(__AVX512F__)
  if constexpr (kStreamed) return _mm512_stream_si512(reinterpret_cast<__m512i*>(p), (__m512i)v);
#elif defined(__AVX2__)
  if constexpr (kStreamed) return _mm256_stream_si256(reinterpret_cast<__m256i*>(p), (__m256i)v);
#endif
  store(p, v);
}

template <bool kStreamed, class S>
ATTNOPS_INLINE void put_lanes(S* p, typename Vec<Compute<S>>::V v, int64_t count) {
  if (count >= kWidth<Compute<S>>)
    put<kStreamed>(p, v);
  else
    store_partial(p, v, count);
}

// Calls body(Storing<whether put() streams>): where that is wanted and every vector is aligned, for
// rows of whole vectors from p on, `stride` elements apart. Other threads see what was streamed
// after it returns.
template <class S, class Body>
ATTNOPS_INLINE void with_storing(bool wanted, const S* p, int64_t stride, const Body& body) {
  if constexpr (kStreams<S>) {
    const bool aligned =
        reinterpret_cast<uintptr_t>(p) % kVectorBytes == 0 && stride % kWidth<Compute<S>> == 0;
    if (wanted && aligned) {
      body(Storing<true>());
#if defined(__AVX2__)
      _mm_sfence();
#endif
      return;
    }
  }
  body(Storing<false>());
}

}  // namespace attnops::cpu::ATTNOPS_ISA
