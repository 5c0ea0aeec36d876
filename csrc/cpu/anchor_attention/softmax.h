// The pointwise part of anchor attention on a tile of scores, in both orientations.
//
// Columns: positions along the vectors, panels [count / kColumns][anchors, padded][kColumns]
//          (contiguous maps); sums over anchors run down the panel.
// Rows:    anchors along the vectors, panels [anchors / kColumns][positions][kColumns]
//          (channels-inner maps); padded anchors have bias -inf, so their probability is 0.
#pragma once

#include "cpu/common/gemm.h"

namespace attnops::cpu::ATTNOPS_ISA {

ATTNOPS_INLINE float log_one(float x) { return __builtin_logf(x); }
ATTNOPS_INLINE double log_one(double x) { return __builtin_log(x); }

// Sums down a panel go into this many accumulators in turn: one would add rounding errors of up to
// 512 anchors on top of each other, and wait for every addition.
constexpr int kSums = 8;

template <class V>
ATTNOPS_INLINE V add_up(V (&sums)[kSums]) {
  for (int half = kSums / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  return sums[0];
}

// scores -> probabilities, lse[n] = log sum_s exp(score + bias).
template <class C>
static void softmax_columns(C* scores, int64_t panel_stride, int64_t anchors, int64_t count,
                            const C* bias, C* lse) {
  using V = typename Vec<C>::V;
  for (int64_t n = 0; n < count; n += kWidth<C>) {
    C* column = scores + n / kColumns<C> * panel_stride + n % kColumns<C>;
    V top = load(column) + bias[0];
    for (int64_t s = 1; s < anchors; ++s) {
      const V x = load(column + s * kColumns<C>) + bias[s];
      top = select(x > top, x, top);
    }
    V sums[kSums] = {};
    for (int64_t s = 0; s < anchors; ++s) {
      const V p = exp_lanes<C>(load(column + s * kColumns<C>) + bias[s] - top);
      store(column + s * kColumns<C>, p);
      sums[s % kSums] += p;
    }
    const V sum = add_up(sums);
    const V inverse = (C)1 / sum;
    for (int64_t s = 0; s < anchors; ++s)
      store(column + s * kColumns<C>, load(column + s * kColumns<C>) * inverse);
    for (int64_t i = 0; i < min64(kWidth<C>, count - n); ++i) lse[n + i] = top[i] + log_one(sum[i]);
  }
}

// scores -> p = exp(score + bias - lse); dp -> ds = p (dp - delta), delta[n] = sum_s p dp.
// dbias[s] += sum_n ds. The rounding of lse is a common factor of a position's probabilities: as
// the whole position is here, they are divided by their sum again.
template <class C>
static void softmax_backward_columns(C* scores, C* dp, int64_t panel_stride, int64_t anchors,
                                     int64_t count, const C* bias, const C* lse) {
  using V = typename Vec<C>::V;
  for (int64_t n = 0; n < count; n += kWidth<C>) {
    const int64_t valid = min64(kWidth<C>, count - n);
    const int64_t at = n / kColumns<C> * panel_stride + n % kColumns<C>;
    const V norm = valid == kWidth<C> ? load(lse + n) : load_partial(lse + n, valid);
    V sums[kSums] = {}, dots[kSums] = {};
    for (int64_t s = 0; s < anchors; ++s) {
      C* score = scores + at + s * kColumns<C>;
      const V p = exp_lanes<C>(load(score) + bias[s] - norm);
      store(score, p);
      sums[s % kSums] += p;
      dots[s % kSums] += p * load(dp + at + s * kColumns<C>);
    }
    const V inverse = (C)1 / add_up(sums);
    const V delta = add_up(dots) * inverse;
    for (int64_t s = 0; s < anchors; ++s) {
      C *score = scores + at + s * kColumns<C>, *grad = dp + at + s * kColumns<C>;
      const V p = load(score) * inverse;
      const V ds = p * (load(grad) - delta);
      store(score, p);
      store(grad, ds);
    }
  }
}

// dbias[s] += sum_n ds.
template <class C>
static void sum_positions_columns(const C* ds, int64_t panel_stride, int64_t anchors, int64_t count,
                                  C* dbias) {
  for (int64_t s = 0; s < anchors; ++s) {
    typename Vec<C>::V sum = {};
    for (int64_t n = 0; n < count; n += kWidth<C>) {
      const C* lanes = ds + n / kColumns<C> * panel_stride + s * kColumns<C> + n % kColumns<C>;
      sum += count - n >= kWidth<C> ? load(lanes) : load_partial(lanes, count - n);
    }
    dbias[s] += lane_sum<C>(sum);
  }
}

template <class C>
static void softmax_rows(C* scores, int64_t panel_stride, int64_t anchors, int64_t count,
                         const C* bias, C* lse) {
  using V = typename Vec<C>::V;
  for (int64_t n = 0; n < count; ++n) {
    C* row = scores + n * kColumns<C>;
    auto at = [&](int64_t s) { return row + s / kColumns<C> * panel_stride + s % kColumns<C>; };
    V top = load(at(0)) + load(bias);
    for (int64_t s = kWidth<C>; s < anchors; s += kWidth<C>) {
      const V x = load(at(s)) + load(bias + s);
      top = select(x > top, x, top);
    }
    const C highest = lane_max<C>(top);
    V sum = {};
    for (int64_t s = 0; s < anchors; s += kWidth<C>) {
      const V p = exp_lanes<C>(load(at(s)) + load(bias + s) - highest);
      store(at(s), p);
      sum += p;
    }
    const C total = lane_sum<C>(sum);
    const C inverse = (C)1 / total;
    for (int64_t s = 0; s < anchors; s += kWidth<C>) store(at(s), load(at(s)) * inverse);
    lse[n] = highest + log_one(total);
  }
}

template <class C>
static void softmax_backward_rows(C* scores, C* dp, int64_t panel_stride, int64_t anchors,
                                  int64_t count, const C* bias, const C* lse) {
  using V = typename Vec<C>::V;
  for (int64_t n = 0; n < count; ++n) {
    auto at = [&](int64_t s) {
      return n * kColumns<C> + s / kColumns<C> * panel_stride + s % kColumns<C>;
    };
    V sum = {}, dot = {};
    for (int64_t s = 0; s < anchors; s += kWidth<C>) {
      const V p = exp_lanes<C>(load(scores + at(s)) + load(bias + s) - lse[n]);
      store(scores + at(s), p);
      sum += p;
      dot += p * load(dp + at(s));
    }
    const C inverse = (C)1 / lane_sum<C>(sum);
    const C delta = lane_sum<C>(dot) * inverse;
    for (int64_t s = 0; s < anchors; s += kWidth<C>) {
      const V p = load(scores + at(s)) * inverse;
      const V ds = p * (load(dp + at(s)) - delta);
      store(scores + at(s), p);
      store(dp + at(s), ds);
    }
  }
}

template <class C>
static void sum_positions_rows(const C* ds, int64_t panel_stride, int64_t anchors, int64_t count,
                               C* dbias) {
  for (int64_t s = 0; s < anchors; s += kWidth<C>) {
    const C* column = ds + s / kColumns<C> * panel_stride + s % kColumns<C>;
    typename Vec<C>::V sums[kSums] = {};
    for (int64_t n = 0; n < count; ++n) sums[n % kSums] += load(column + n * kColumns<C>);
    store(dbias + s, load(dbias + s) + add_up(sums));
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
