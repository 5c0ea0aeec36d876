// Labels and cross-entropy of bilinearly resized logits; compiled once per instruction set.
//
// Vectors run along the classes. For an output row the two rows of logits that it reads are blended
// to [w][lanes], lanes being the classes padded to whole vectors; every pixel then blends two of
// its columns and is finished: no resized map exists.
#include "class_map.h"
#include "score_rows.h"

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
struct Table {
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  static constexpr int64_t kW = kWidth<C>;

  static constexpr C kNothing = -C(__builtin_inf());  // the logit of a lane without a class

  // What a worker needs; `held` rows of gradients of logits.
  struct Worker {
    Arena arena;
    const int64_t lanes;
    BlendedRows<S> rows;
    RowGradients<S> gradients;
    C* pixel;

    Worker(const ClassMap& s, int64_t held, void* scratch)
        : arena(scratch),
          lanes(lanes_for<C>(s.classes)),
          rows(arena, s, kNothing),
          gradients(arena, s, held),
          pixel(arena.take<C>(lanes)) {}
  };

  static int64_t scratch_bytes(const ClassMap& s, int64_t held) {
    return Worker(s, held, nullptr).arena.bytes();
  }

  // The logits of a pixel between columns a and b.
  ATTNOPS_INLINE V pixel_logits(const C* a, const C* b, C left, C right, int64_t k,
                                int64_t classes) {
    const V v = left * load(a + k) + right * load(b + k);
    if (k + kW <= classes) return v;
    return mask_lanes(v, classes - k);
  }

  ATTNOPS_INLINE V mask_lanes(V v, int64_t count) {
    C lanes[kW];
    store(lanes, v);
    for (int64_t i = count; i < kW; ++i) lanes[i] = kNothing;
    return load(lanes);
  }

  static void labels(const ClassMap& s, const void* logits, int64_t* out, int64_t begin,
                     int64_t end, void* scratch) {
    Worker worker(s, 0, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    const int64_t lanes = worker.lanes;
    I lane;
    for (int64_t i = 0; i < kW; ++i) lane[i] = static_cast<typename Vec<C>::Int>(i);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const C* a = blend + s.columns.first[x] * lanes;
        const C* b = blend + s.columns.second[x] * lanes;
        V best = pixel_logits(a, b, left, right, 0, s.classes);
        I index = lane, current = lane;
        for (int64_t k = kW; k < lanes; k += kW) {
          const V v = pixel_logits(a, b, left, right, k, s.classes);
          current += static_cast<typename Vec<C>::Int>(kW);
          // NaN counts as larger than anything but an earlier NaN.
          const I better = (I)(v > best) | ((I)(v != v) & (I)(best == best));
          best = better ? v : best;
          index = better ? current : index;
        }
        out[y * s.columns.outputs + x] = first_of_largest(best, index);
      }
    }
  }

  // The smallest index among the lanes with the largest value, NaN being the largest.
  ATTNOPS_INLINE int64_t first_of_largest(V best, I index) {
    C value = best[0];
    int64_t found = index[0];
    for (int64_t i = 1; i < kW; ++i) {
      const C v = best[i];
      const int64_t k = index[i];
      const bool is_nan = v != v, was_nan = value != value;
      const bool better =
          is_nan ? !was_nan || k < found : !was_nan && (v > value || (v == value && k < found));
      if (better) {
        value = v;
        found = k;
      }
    }
    return found;
  }

  static void losses(const ClassMap& s, const void* logits, const int64_t* target, void* loss_,
                     void* largest_, void* rest_, int64_t begin, int64_t end, void* scratch) {
    Worker worker(s, 0, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    const int64_t lanes = worker.lanes;
    C* pixel = worker.pixel;
    C *loss = static_cast<C*>(loss_), *largest = static_cast<C*>(largest_);
    C* rest = static_cast<C*>(rest_);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const C* a = blend + s.columns.first[x] * lanes;
        const C* b = blend + s.columns.second[x] * lanes;
        V most = broadcast<C>(kNothing);
        I nan = {};
        for (int64_t k = 0; k < lanes; k += kW) {
          const V v = pixel_logits(a, b, left, right, k, s.classes);
          store(pixel + k, v);
          most = select(v > most, v, most);
          nan |= (I)(v != v);
        }
        C m = lane_max<C>(most);
        for (int64_t i = 0; i < kW; ++i)
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

  static void gradients(const ClassMap& s, const void* grad_, const void* logits,
                        const int64_t* target, const void* largest_, const void* rest_,
                        void* dlogits, int64_t first, int64_t last, int64_t begin, int64_t end,
                        void* scratch) {
    Worker worker(s, last - first, scratch);
    worker.rows.start(static_cast<const S*>(logits));
    worker.gradients.start(first, last);
    const int64_t lanes = worker.lanes;
    const C *grad = static_cast<const C*>(grad_), *largest = static_cast<const C*>(largest_);
    const C* rest = static_cast<const C*>(rest_);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = worker.rows.blend(y);
      C* sum = worker.gradients.start_row();
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const int64_t i = y * s.columns.outputs + x, t = target[i];
        if (t < 0 || t >= s.classes || t == s.ignore_index) continue;
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const int64_t a = s.columns.first[x] * lanes, b = s.columns.second[x] * lanes;
        const C m = largest[i], r = rest[i], g = grad[i];
        for (int64_t k = 0; k < lanes; k += kW) {
          const V v = pixel_logits(blend + a, blend + b, left, right, k, s.classes);
          const V d = g * exp_lanes<C>((v - m) - r);
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

  static constexpr ClassKernels kernels = {scratch_bytes, labels, losses, gradients};
};

}  // namespace

const ClassKernels& class_kernels(DType dtype) {
  switch (dtype) {
    case DType::kFloat64:
      return Table<double>::kernels;
    case DType::kFloat16:
      return Table<Half>::kernels;
    case DType::kBFloat16:
      return Table<BFloat16>::kernels;
    default:
      return Table<float>::kernels;
  }
}

}  // namespace attnops::cpu::ATTNOPS_ISA
