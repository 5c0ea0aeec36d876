// Numbers below the normal range, where they cost and mean nothing.
#pragma once

#if defined(__SSE__)
#include <xmmintrin.h>
#endif

namespace attnops::cpu::ATTNOPS_ISA {

// As long as this lives, results of this thread below the normal range are zero. For softmaxes:
// weights of e^-88 and less are such numbers, and Intel's processors take many times as long for
// every product with one.
class NoSubnormalResults {
 public:
#if defined(__SSE__)
  NoSubnormalResults() { _mm_setcsr(before_ | kFlushToZero); }
  ~NoSubnormalResults() { _mm_setcsr(before_); }

 private:
  static constexpr unsigned kFlushToZero = 0x8000;
  const unsigned before_ = _mm_getcsr();
#else
  NoSubnormalResults() {}
#endif
  NoSubnormalResults(const NoSubnormalResults&) = delete;
  NoSubnormalResults& operator=(const NoSubnormalResults&) = delete;
};

}  // namespace attnops::cpu::ATTNOPS_ISA
