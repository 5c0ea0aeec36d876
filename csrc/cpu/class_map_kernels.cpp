// Labels and cross-entropy of bilinearly resized logits; compiled once per instruction set.
//
// Vectors run along the classes. For an output row the two rows of logits that it reads are blended
// to [w][lanes], lanes being the classes padded to whole vectors; every pixel then blends two of
// its columns and is finished: no resized map exists.
#include "class_map.h"
#include "vec.h"

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

  // Offsets in elements of C: two rows of logits, their blend, the logits of a pixel, sums of a row
  // and of the held rows.
  struct Buffers {
    int64_t lanes, row, rows[2], blend, pixel, sum, held, total;

    Buffers(const ClassMap& s, int64_t held_rows) {
      lanes = round_up(s.classes, kW);
      row = s.columns.inputs * lanes;
      rows[0] = 0;
      rows[1] = row;
      blend = 2 * row;
      pixel = blend + row;
      sum = pixel + lanes;
      held = sum + (held_rows ? row : 0);
      total = held + held_rows * row;
    }
  };

  static int64_t scratch_bytes(const ClassMap& s, int64_t held) {
    return round_up(Buffers(s, held).total * static_cast<int64_t>(sizeof(C)), 64);
  }

  // Row `y` of the logits as [w][lanes]; lanes past the classes are minus infinity.
  static void load_row(const ClassMap& s, const S* logits, int64_t y, int64_t lanes, C* out) {
    const int64_t width = s.columns.inputs;
    if (s.channels_last) {
      const S* source = logits + y * width * s.classes;
      for (int64_t x = 0; x < width; ++x)
        for (int64_t k = 0; k < s.classes; k += kW)
          store(out + x * lanes + k,
                load_partial(source + x * s.classes + k, min64(kW, s.classes - k)));
    } else {
      for (int64_t k = 0; k < s.classes; ++k) {
        const S* source = logits + (k * s.rows.inputs + y) * width;
        for (int64_t x = 0; x < width; x += kW) {
          const int64_t count = min64(kW, width - x);
          C values[kW];
          store(values, load_partial(source + x, count));
          for (int64_t i = 0; i < count; ++i) out[(x + i) * lanes + k] = values[i];
        }
      }
    }
    for (int64_t x = 0; x < width; ++x)
      for (int64_t k = s.classes; k < lanes; ++k) out[x * lanes + k] = -C(__builtin_inf());
  }

  // The blended rows of logits, one output row after the other.
  struct Rows {
    const ClassMap& s;
    const S* logits;
    const Buffers& at;
    C* scratch;
    int64_t held[2] = {-1, -1};

    const C* get(int64_t row, int64_t other) {
      for (int i = 0; i < 2; ++i)
        if (held[i] == row) return scratch + at.rows[i];
      const int slot = held[0] == other ? 1 : 0;
      load_row(s, logits, row, at.lanes, scratch + at.rows[slot]);
      held[slot] = row;
      return scratch + at.rows[slot];
    }

    const C* blend(int64_t y) {
      const C* top = get(s.rows.first[y], s.rows.second[y]);
      const C* bottom = get(s.rows.second[y], s.rows.first[y]);
      const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
      C* out = scratch + at.blend;
      for (int64_t i = 0; i < at.row; i += kW)
        store(out + i, high * load(top + i) + low * load(bottom + i));
      // Weights of zero make NaN of the padding's infinities.
      if (at.lanes != s.classes)
        for (int64_t x = 0; x < s.columns.inputs; ++x)
          for (int64_t k = s.classes; k < at.lanes; ++k)
            out[x * at.lanes + k] = -C(__builtin_inf());
      return out;
    }
  };

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
    for (int64_t i = count; i < kW; ++i) lanes[i] = -C(__builtin_inf());
    return load(lanes);
  }

  static void labels(const ClassMap& s, const void* logits, int64_t* out, int64_t begin,
                     int64_t end, void* scratch_) {
    const Buffers at(s, 0);
    Rows rows{s, static_cast<const S*>(logits), at, static_cast<C*>(scratch_)};
    I lane;
    for (int64_t i = 0; i < kW; ++i) lane[i] = static_cast<typename Vec<C>::Int>(i);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = rows.blend(y);
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const C* a = blend + s.columns.first[x] * at.lanes;
        const C* b = blend + s.columns.second[x] * at.lanes;
        V best = pixel_logits(a, b, left, right, 0, s.classes);
        I index = lane, current = lane;
        for (int64_t k = kW; k < at.lanes; k += kW) {
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
                     void* largest_, void* rest_, int64_t begin, int64_t end, void* scratch_) {
    const Buffers at(s, 0);
    C *scratch = static_cast<C*>(scratch_), *pixel = scratch + at.pixel;
    Rows rows{s, static_cast<const S*>(logits), at, scratch};
    C *loss = static_cast<C*>(loss_), *largest = static_cast<C*>(largest_);
    C* rest = static_cast<C*>(rest_);
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = rows.blend(y);
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const C* a = blend + s.columns.first[x] * at.lanes;
        const C* b = blend + s.columns.second[x] * at.lanes;
        V most = broadcast<C>(-C(__builtin_inf()));
        I nan = {};
        for (int64_t k = 0; k < at.lanes; k += kW) {
          const V v = pixel_logits(a, b, left, right, k, s.classes);
          store(pixel + k, v);
          most = select(v > most, v, most);
          nan |= (I)(v != v);
        }
        C m = lane_max<C>(most);
        for (int64_t i = 0; i < kW; ++i)
          if (nan[i]) m = C(__builtin_nan(""));
        V sum = {};
        for (int64_t k = 0; k < at.lanes; k += kW) sum += exp_lanes<C>(load(pixel + k) - m);
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
                        void* scratch_) {
    const Buffers at(s, last - first);
    C *scratch = static_cast<C*>(scratch_), *sum = scratch + at.sum, *held = scratch + at.held;
    Rows rows{s, static_cast<const S*>(logits), at, scratch};
    const C *grad = static_cast<const C*>(grad_), *largest = static_cast<const C*>(largest_);
    const C* rest = static_cast<const C*>(rest_);
    for (int64_t i = 0; i < (last - first) * at.row; i += kW) store(held + i, V{});
    for (int64_t y = begin; y < end; ++y) {
      const C* blend = rows.blend(y);
      for (int64_t i = 0; i < at.row; i += kW) store(sum + i, V{});
      for (int64_t x = 0; x < s.columns.outputs; ++x) {
        const int64_t i = y * s.columns.outputs + x, t = target[i];
        if (t < 0 || t >= s.classes || t == s.ignore_index) continue;
        const C right = static_cast<C>(s.columns.weight[x]), left = C(1) - right;
        const int64_t a = s.columns.first[x] * at.lanes, b = s.columns.second[x] * at.lanes;
        const C m = largest[i], r = rest[i], g = grad[i];
        for (int64_t k = 0; k < at.lanes; k += kW) {
          const V v = pixel_logits(blend + a, blend + b, left, right, k, s.classes);
          const V d = g * exp_lanes<C>((v - m) - r);
          store(sum + a + k, load(sum + a + k) + left * d);
          store(sum + b + k, load(sum + b + k) + right * d);
        }
        sum[a + t] -= left * g;
        sum[b + t] -= right * g;
      }
      const C low = static_cast<C>(s.rows.weight[y]), high = C(1) - low;
      add_row(s.rows.first[y], high, first, last, at, sum, held);
      add_row(s.rows.second[y], low, first, last, at, sum, held);
    }
    for (int64_t row = first; row < last; ++row)
      store_row(s, held + (row - first) * at.row, row, at.lanes, static_cast<S*>(dlogits));
  }

  static void add_row(int64_t row, C weight, int64_t first, int64_t last, const Buffers& at,
                      const C* sum, C* held) {
    if (row < first || row >= last) return;
    C* to = held + (row - first) * at.row;
    for (int64_t i = 0; i < at.row; i += kW) store(to + i, load(to + i) + weight * load(sum + i));
  }

  static void store_row(const ClassMap& s, const C* row, int64_t y, int64_t lanes, S* dlogits) {
    const int64_t width = s.columns.inputs;
    for (int64_t x = 0; x < width; ++x) {
      const C* source = row + x * lanes;
      if (s.channels_last) {
        S* to = dlogits + (y * width + x) * s.classes;
        for (int64_t k = 0; k < s.classes; k += kW)
          store_partial(to + k, load(source + k), min64(kW, s.classes - k));
        continue;
      }
      for (int64_t k = 0; k < s.classes; ++k)
        store_one(dlogits + (k * s.rows.inputs + y) * width + x, source[k]);
    }
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
