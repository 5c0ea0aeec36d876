// Activations of values in memory.
#pragma once

#include "cpu/common/activation.h"
#include "gelu.h"
#include "silu.h"

namespace attnops::cpu::ATTNOPS_ISA {

// x = of(x) for `count` values, four vectors at a time: each is a long chain.
template <class C, class Of>
void activate_values(C* x, int64_t count, const Of& of) {
  constexpr int kTogether = 4;
  constexpr int64_t kW = kWidth<C>;
  int64_t i = 0;
  for (; i + kTogether * kW <= count; i += kTogether * kW) {
#pragma GCC unroll 4
    for (int j = 0; j < kTogether; ++j) store(x + i + j * kW, of(load(x + i + j * kW)));
  }
  for (; i < count; i += kW) store_lanes(x + i, of(load_lanes(x + i, count - i)), count - i);
}

template <class C>
void activate_values(C* x, int64_t count, Activation activation) {
  using V = typename Vec<C>::V;
  const auto relu = [](V v) __attribute__((always_inline)) { return at_least(C(0), v); };
  const auto gelu = [](V v) __attribute__((always_inline)) { return gelu_lanes<C>(v); };
  const auto silu = [](V v) __attribute__((always_inline)) { return silu_lanes<C>(v); };
  if (activation == Activation::kRelu) activate_values(x, count, relu);
  if (activation == Activation::kGelu) activate_values(x, count, gelu);
  if (activation == Activation::kSilu) activate_values(x, count, silu);
}

}  // namespace attnops::cpu::ATTNOPS_ISA
