// Labels and cross-entropy of bilinearly resized logits, vectors along the classes; compiled once
// per instruction set.
#include "cpu/common/subnormals.h"
#include "cpu/resize/class_rows.h"
#include "host.h"
#include "labels.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

template <class C>
C log_of(C x);
template <>
float log_of(float x) {
  return __builtin_logf(x);
}
template <>
double log_of(double x) {
  return __builtin_log(x);
}

template <class S>
struct ClassesEntries {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  static constexpr int64_t kW = kWidth<C>;

  // What a worker needs; `held` rows of gradients of logits.
  struct Worker {
    Arena arena;
    const int64_t lanes;
    BlendedRows<S> rows;
    RowGradients<S> gradients;
    C* pixel;

    Worker(const ClassesShape& s, int64_t held, void* scratch)
        : arena(scratch),
          lanes(lanes_for<C>(s.classes)),
          rows(arena, s, kNothing<C>),
          gradients(arena, s, held),
          pixel(arena.take<C>(lanes)) {}
  };

  static int64_t scratch_bytes(const ClassesShape& s, int64_t held) {
    Arena arena(nullptr);
    RowLabels<S>(arena, s);
    return max64(arena.bytes(), Worker(s, held, nullptr).arena.bytes());
  }

  static void labels(const ClassesShape& s, const void* logits, int64_t* out, int64_t begin,
                     int64_t end, void* scratch) {
    Arena arena(scratch);
    RowLabels<S> rows(arena, s);
    rows.start(static_cast<const S*>(logits));
    for (int64_t y = begin; y < end; ++y) rows.find(y, out + y * s.columns.outputs);
  }

  static void losses(const ClassesShape& s, const void* logits, const int64_t* target, void* loss_,
                     void* largest_, void* rest_, int64_t begin, int64_t end, void* scratch) {
    const NoSubnormalResults none;
    Worker worker(s, 0, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    const int64_t lanes = worker.lanes;
    C* pixel = worker.pixel;
    C *loss = static_cast<C*>(loss_), *largest = static_cast<C*>(largest_);
    C* rest = static_cast<C*>(rest_);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      const bool finite = worker.rows.finite();
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const C* a = blend + s.columns.first[x] * lanes;
        const C* b = blend + s.columns.second[x] * lanes;
        V most = broadcast<C>(-C(__builtin_inf()));
        I nan = {};
        for (int64_t k = 0; k < lanes; k += kW) {
          const V v = finite ? pixel_logits<true>(a, b, left, right, k, s.classes)
                             : pixel_logits<false>(a, b, left, right, k, s.classes);
          store(pixel + k, v);
          most = select(v > most, v, most);
          nan |= (I)(v != v);
        }
        C m = lane_max<C>(most);
        for (int64_t i = 0; i < kW && !finite; ++i)
          if (nan[i]) m = C(__builtin_nan(""));
        V sum = {};
        for (int64_t k = 0; k < lanes; k += kW) sum += exp_lanes<C>(load(pixel + k) - m);
        const int64_t i = y * s.columns.outputs + x, t = target[i];
        const C log_sum = log_of(lane_sum<C>(sum));
        largest[i] = m;
        rest[i] = log_sum;
        if (t == s.ignore_index)
          loss[i] = C(0);
        else
          loss[i] = t >= 0 && t < s.classes ? log_sum - (pixel[t] - m) : C(__builtin_nan(""));
      }
    }
  }

  static void gradients(const ClassesShape& s, const void* grad_, const void* grad_lse_,
                        const void* logits, const int64_t* target, const void* largest_,
                        const void* rest_, void* dlogits, int64_t first, int64_t last,
                        int64_t begin, int64_t end, void* scratch) {
    const NoSubnormalResults none;
    Worker worker(s, last - first, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    worker.gradients.start(first, last);
    const int64_t lanes = worker.lanes;
    const C *grad = static_cast<const C*>(grad_), *grad_lse = static_cast<const C*>(grad_lse_);
    const C* largest = static_cast<const C*>(largest_);
    const C* rest = static_cast<const C*>(rest_);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      const bool finite = worker.rows.finite();
      C* sum = worker.gradients.start_row();
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const int64_t i = y * s.columns.outputs + x, t = target[i];
        if (t < 0 || t >= s.classes || t == s.ignore_index) continue;
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const int64_t a = s.columns.first[x] * lanes, b = s.columns.second[x] * lanes;
        const C m = largest[i], r = rest[i], g = grad[i];
        const C all = grad_lse == nullptr ? g : g + grad_lse[i];
        for (int64_t k = 0; k < lanes; k += kW) {
          const V v = finite ? pixel_logits<true>(blend + a, blend + b, left, right, k, s.classes)
                             : pixel_logits<false>(blend + a, blend + b, left, right, k, s.classes);
          const V d = all * exp_lanes<C>((v - m) - r);
          store(sum + a + k, load(sum + a + k) + left * d);
          store(sum + b + k, load(sum + b + k) + right * d);
        }
        sum[a + t] -= left * g;
        sum[b + t] -= right * g;
      }
      worker.gradients.add_row(y);
    }
    worker.gradients.write(static_cast<S*>(dlogits));
  }

  static constexpr ClassesKernels kernels = {scratch_bytes, labels, losses, gradients};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(ClassesKernels, classes_kernels, ClassesEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
