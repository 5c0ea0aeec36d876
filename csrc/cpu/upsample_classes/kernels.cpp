// Labels and cross-entropy of bilinearly resized logits, vectors along the classes; compiled once
// per instruction set.
#include "cpu/resize/class_rows.h"
#include "host.h"

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

  // The logit of a lane without a class, which none of a class is below: finite, because blends of
  // infinities are NaN. Where logits are not all finite, it becomes minus infinity.
  static constexpr C kNothing =
      sizeof(C) == 4 ? -static_cast<C>(__FLT_MAX__) : -static_cast<C>(__DBL_MAX__);

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
          rows(arena, s, kNothing),
          gradients(arena, s, held),
          pixel(arena.take<C>(lanes)) {}
  };

  static int64_t scratch_bytes(const ClassesShape& s, int64_t held) {
    return Worker(s, held, nullptr).arena.bytes();
  }

  // The logits of a pixel between columns a and b. kFinite: all of them are.
  template <bool kFinite>
  ATTNOPS_INLINE V pixel_logits(const C* a, const C* b, C left, C right, int64_t k,
                                int64_t classes) {
    const V v = left * load(a + k) + right * load(b + k);
    if (kFinite || k + kW <= classes) return v;
    C lanes[kW];
    store(lanes, v);
    for (int64_t i = classes - k; i < kW; ++i) lanes[i] = -C(__builtin_inf());
    return load(lanes);
  }

  static void labels(const ClassesShape& s, const void* logits, int64_t* out, int64_t begin,
                     int64_t end, void* scratch) {
    Worker worker(s, 0, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      int64_t* row = out + y * s.columns.outputs;
      if (worker.rows.finite())
        label_row<true>(s, blend, worker.lanes, row);
      else
        label_row<false>(s, blend, worker.lanes, row);
    }
  }

  template <bool kFinite>
  static void label_row(const ClassesShape& s, const C* blend, int64_t lanes, int64_t* out) {
    I lane;
    for (int64_t i = 0; i < kW; ++i) lane[i] = static_cast<typename Vec<C>::Int>(i);
    const int64_t width = s.columns.outputs;
    for (int64_t x = 0; x < width; x += kW) {
      V best[kW] = {}, index[kW] = {};
      const int64_t count = min64(kW, width - x);
      for (int64_t p = 0; p < count; ++p) {
        const C right = static_cast<C>(s.columns.weight[x + p]), left = C(1) - right;
        const C* a = blend + s.columns.first[x + p] * lanes;
        const C* b = blend + s.columns.second[x + p] * lanes;
        V most = pixel_logits<kFinite>(a, b, left, right, 0, s.classes);
        I found = lane, current = lane;
        for (int64_t k = kW; k < lanes; k += kW) {
          const V v = pixel_logits<kFinite>(a, b, left, right, k, s.classes);
          current += static_cast<typename Vec<C>::Int>(kW);
          const I better = is_better<kFinite>(v, most);
          most = better ? v : most;
          found = better ? current : found;
        }
        best[p] = most;
        index[p] = (V)found;
      }
      // A lane of all pixels becomes a vector, and vectors are compared.
      transpose_steps<C>(best);
      transpose_steps<C>(index);
      V most = best[0];
      I found = (I)index[0];
      for (int64_t i = 1; i < kW; ++i) {
        const I other = (I)index[i];
        const I same = ~is_better<kFinite>(most, best[i]) & (I)(other < found);
        const I better = is_better<kFinite>(best[i], most) | same;
        most = better ? best[i] : most;
        found = better ? other : found;
      }
      for (int64_t p = 0; p < count; ++p) out[x + p] = found[p];
    }
  }

  // NaN is larger than anything but NaN.
  template <bool kFinite>
  ATTNOPS_INLINE I is_better(V v, V than) {
    const I larger = (I)(v > than);
    return kFinite ? larger : larger | ((I)(v != v) & (I)(than == than));
  }

  static void losses(const ClassesShape& s, const void* logits, const int64_t* target, void* loss_,
                     void* largest_, void* rest_, int64_t begin, int64_t end, void* scratch) {
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
