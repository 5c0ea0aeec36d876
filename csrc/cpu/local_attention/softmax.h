// The pointwise part of local attention, on rows of scores: element (n, x) of a row is
// row[n * stride + x], neighbours n in row-major order. Scores hold the scale already.
#pragma once

#include "host.h"
#include "window.h"

namespace attnops::cpu::ATTNOPS_ISA {

// Sums over neighbours go into this many accumulators in turn.
constexpr int kChains = 4;

template <class V>
ATTNOPS_INLINE V add_chains(const V (&sums)[kChains]) {
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

ATTNOPS_INLINE float log_of(float x) { return __builtin_logf(x); }
ATTNOPS_INLINE double log_of(double x) { return __builtin_log(x); }

// 0, 1, 2, ...
template <class C>
ATTNOPS_INLINE typename Vec<C>::I lane_numbers() {
  typename Vec<C>::I lanes;
  for (int i = 0; i < kWidth<C>; ++i) lanes[i] = i;
  return lanes;
}

// Gives neighbours outside the map the score -inf: row y, `columns` columns from `left` on.
template <class C>
static void mask_scores(const LocalShape& s, C* row, int64_t stride, int64_t y, int64_t left,
                        int64_t columns) {
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  using Lane = typename Vec<C>::Int;
  const V never = broadcast(-static_cast<C>(__builtin_inf()));
  for (int64_t i = 0; i < s.rows; ++i) {
    const int64_t row_seen = y + (i - s.rows / 2) * s.row_step;
    const bool row_outside = row_seen < 0 || row_seen >= s.height;
    for (int64_t j = 0; j < s.columns; ++j) {
      const int64_t shift = (j - s.columns / 2) * s.column_step;
      C* scores = row + (i * s.columns + j) * stride;
      for (int64_t x = 0; x < columns; x += kWidth<C>) {
        const int64_t first = left + x + shift;  // column that lane 0 sees
        if (!row_outside && first >= 0 && first + kWidth<C> <= s.width) continue;
        // Lanes [from, to) see the map.
        const Lane from = static_cast<Lane>(max64(0, min64(kWidth<C>, -first)));
        const Lane to = static_cast<Lane>(max64(0, min64(kWidth<C>, s.width - first)));
        const I lanes = lane_numbers<C>();
        const I inside = row_outside ? I{} : (I)(lanes >= from) & (I)(lanes < to);
        store(scores + x, select(inside, load(scores + x), never));
      }
    }
  }
}

// scores -> probabilities, lse[x] = log sum_n exp(score); lse has `columns` elements, scores are
// padded to whole vectors.
template <class C>
static void softmax_row(const LocalShape& s, C* row, int64_t stride, int64_t columns, C* lse) {
  using V = typename Vec<C>::V;
  const int64_t neighbours = s.rows * s.columns;
  const C unreachable = s.mask_border ? 0 : static_cast<C>(s.unreachable);
  for (int64_t x = 0; x < columns; x += kWidth<C>) {
    C* scores = row + x;
    V top = load(scores);
    for (int64_t n = 1; n < neighbours; ++n) {
      const V score = load(scores + n * stride);
      top = select(score > top, score, top);
    }
    if (unreachable > 0) top = select(top < (C)0, V{}, top);
    V sums[kChains] = {};
    if (unreachable > 0) sums[0] = unreachable * exp_lanes<C>(-top);
    for (int64_t n = 0; n < neighbours; ++n) {
      const V p = exp_lanes<C>(load(scores + n * stride) - top);
      store(scores + n * stride, p);
      sums[n % kChains] += p;
    }
    const V sum = add_chains(sums);
    const V inverse = (C)1 / sum;
    for (int64_t n = 0; n < neighbours; ++n)
      store(scores + n * stride, load(scores + n * stride) * inverse);
    for (int64_t i = 0; i < min64(kWidth<C>, columns - x); ++i)
      lse[x + i] = top[i] + log_of(sum[i]);
  }
}

// scores -> p = exp(score - lse); dp -> ds = p (dp - delta), delta[x] = sum_n p dp. Both become 0
// in lanes beyond `columns`. The rounding of lse is a common factor of a position's probabilities:
// they are divided by their sum again.
template <class C>
static void softmax_backward_row(const LocalShape& s, C* scores, C* grads, int64_t stride,
                                 int64_t columns, const C* lse) {
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  const int64_t neighbours = s.rows * s.columns;
  const C unreachable = s.mask_border ? 0 : static_cast<C>(s.unreachable);
  for (int64_t x = 0; x < columns; x += kWidth<C>) {
    const int64_t lanes = min64(kWidth<C>, columns - x);
    const V norm = lanes == kWidth<C> ? load(lse + x) : load_partial(lse + x, lanes);
    V sums[kChains] = {}, dots[kChains] = {};
    if (unreachable > 0) sums[0] = unreachable * exp_lanes<C>(-norm);
    for (int64_t n = 0; n < neighbours; ++n) {
      const V p = exp_lanes<C>(load(scores + n * stride + x) - norm);
      store(scores + n * stride + x, p);
      sums[n % kChains] += p;
      dots[n % kChains] += p * load(grads + n * stride + x);
    }
    const V inverse = (C)1 / add_chains(sums);
    const V delta = add_chains(dots) * inverse;
    const I valid = lane_numbers<C>() < static_cast<typename Vec<C>::Int>(lanes);
    for (int64_t n = 0; n < neighbours; ++n) {
      C *score = scores + n * stride + x, *grad = grads + n * stride + x;
      const V p = load(score) * inverse;
      store(score, select(valid, p, V{}));
      store(grad, select(valid, p * (load(grad) - delta), V{}));
    }
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
