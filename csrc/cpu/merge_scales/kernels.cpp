// Merging resized score maps, vectors along the classes; compiled once per instruction set.
#include "cpu/common/subnormals.h"
#include "cpu/resize/class_rows.h"
#include "host.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

// The horizontal half of a resize.
template <class C>
struct Pixel {
  const C *a, *b;
  C left, right;

  Pixel(const ResizeAxis& columns, const C* blend, int64_t x, int64_t lanes)
      : a(blend + columns.first[x] * lanes),
        b(blend + columns.second[x] * lanes),
        left(C(1) - static_cast<C>(columns.weight[x])),
        right(static_cast<C>(columns.weight[x])) {}

  typename Vec<C>::V at(int64_t k) const { return left * load(a + k) + right * load(b + k); }
};

template <class S>
class Merger {
 public:
  using C = Compute<S>;
  using V = typename Vec<C>::V;
  using I = typename Vec<C>::I;
  static constexpr int64_t kW = kWidth<C>;

  Merger(Arena& arena, const MergeShape& shape)
      : s_(shape),
        lanes_(lanes_for<C>(shape.classes)),
        padded_(round_up(shape.width, kW)),
        row_(arena.take<C>(shape.width * lanes_)),
        weights_(arena.take<C>(shape.scales * padded_)),
        products_(arena.take<C>(shape.scales * padded_)),
        blends_(arena.take<const C*>(shape.scales)),
        rows_(arena.take<BlendedRows<S>>(shape.scales)) {
    for (int64_t i = 0; i < shape.scales; ++i) {
      const BlendedRows<S> rows(arena, shape.maps[i], C(0));
      if (rows_ != nullptr) rows_[i] = rows;
    }
  }

  void start(const void* const* scores, const void* logits) {
    logits_ = static_cast<const S*>(logits);
    for (int64_t i = 0; i < s_.scales; ++i) rows_[i].start(static_cast<const S*>(scores[i]));
  }

  void merge(int64_t y, S* out) {
    load_weights(y);
    for (int64_t i = 0; i < s_.scales; ++i) add_scale(i, y);
    if (s_.reduce == Merge::kMean)
      for (int64_t i = 0; i < s_.width * lanes_; i += kW)
        store(row_ + i, load(row_ + i) / static_cast<C>(s_.scales));
    store_scores(row_, s_.channels_last, s_.classes, s_.height, s_.width, y, out);
  }

  void logit_gradients(const S* grad, int64_t y, S* dlogits) {
    load_weights(y);
    load_gradient(grad, y);
    for (int64_t i = 0; i < s_.scales; ++i) {
      const C* blend = rows_[i].blend(y);
      for (int64_t x = 0; x < s_.width; ++x) {
        const Pixel<C> pixel(s_.maps[i].columns, blend, x, lanes_);
        V sum = {};
        for (int64_t k = 0; k < lanes_; k += kW) sum += load(row_ + x * lanes_ + k) * pixel.at(k);
        products_[i * padded_ + x] = lane_sum<C>(sum);
      }
    }
    for (int64_t x = 0; x < s_.width; x += kW) {
      V total = {};
      for (int64_t i = 0; i < s_.scales; ++i)
        total += load(weights_ + i * padded_ + x) * load(products_ + i * padded_ + x);
      for (int64_t i = 0; i < s_.scales; ++i) {
        C* product = products_ + i * padded_ + x;
        store(product, load(weights_ + i * padded_ + x) * (load(product) - total));
      }
    }
    store_logits(y, dlogits);
  }

  // What output row y adds to the gradient of map `scale`.
  void add_gradients(int64_t scale, const S* grad, int64_t y, RowGradients<S>& gradients) {
    load_gradient(grad, y);
    if (s_.reduce == Merge::kAttention) load_weights(y);
    if (s_.reduce == Merge::kMax)
      for (int64_t i = 0; i < s_.scales; ++i) blends_[i] = rows_[i].blend(y);
    const ResizeAxis& columns = s_.maps[scale].columns;
    C* sums = gradients.start_row();
    for (int64_t x = 0; x < s_.width; ++x) {
      const C right = static_cast<C>(columns.weight[x]), left = C(1) - right;
      C *a = sums + columns.first[x] * lanes_, *b = sums + columns.second[x] * lanes_;
      for (int64_t k = 0; k < lanes_; k += kW) {
        V d = load(row_ + x * lanes_ + k);
        switch (s_.reduce) {
          case Merge::kAttention:
            d *= weights_[scale * padded_ + x];
            break;
          case Merge::kMean:
            d /= static_cast<C>(s_.scales);
            break;
          case Merge::kMax:
            d = select(wins(scale, x, k), d, V{});
        }
        store(a + k, load(a + k) + left * d);
        store(b + k, load(b + k) + right * d);
      }
    }
    gradients.add_row(y);
  }

 private:
  // weights_ [scales][padded_]: the softmax of the logits of row y.
  void load_weights(int64_t y) {
    if (s_.reduce != Merge::kAttention) return;
    for (int64_t i = 0; i < s_.scales; ++i)
      for (int64_t x = 0; x < padded_; x += kW) {
        C* to = weights_ + i * padded_ + x;
        const int64_t count = min64(kW, s_.width - x);
        if (!s_.channels_last) {
          store(to, load_partial(logits_ + (i * s_.height + y) * s_.width + x, count));
          continue;
        }
        store(to, V{});
        const S* source = logits_ + (y * s_.width + x) * s_.scales + i;
        for (int64_t p = 0; p < count; ++p) to[p] = load_one(source + p * s_.scales);
      }
    for (int64_t x = 0; x < padded_; x += kW) {
      V largest = load(weights_ + x);
      for (int64_t i = 1; i < s_.scales; ++i) {
        const V z = load(weights_ + i * padded_ + x);
        largest = select((I)(z > largest) | (I)(z != z), z, largest);
      }
      V sum = {};
      for (int64_t i = 0; i < s_.scales; ++i) {
        C* w = weights_ + i * padded_ + x;
        const V e = exp_lanes<C>(load(w) - largest);
        store(w, e);
        sum += e;
      }
      for (int64_t i = 0; i < s_.scales; ++i) {
        C* w = weights_ + i * padded_ + x;
        store(w, load(w) / sum);
      }
    }
  }

  void store_logits(int64_t y, S* dlogits) const {
    for (int64_t i = 0; i < s_.scales; ++i) {
      const C* from = products_ + i * padded_;
      if (s_.channels_last)
        for (int64_t x = 0; x < s_.width; ++x)
          store_one(dlogits + (y * s_.width + x) * s_.scales + i, from[x]);
      else
        for (int64_t x = 0; x < s_.width; x += kW)
          store_partial(dlogits + (i * s_.height + y) * s_.width + x, load(from + x),
                        min64(kW, s_.width - x));
    }
  }

  void load_gradient(const S* grad, int64_t y) {
    load_scores(grad, s_.channels_last, s_.classes, s_.height, s_.width, y, C(0), row_);
  }

  // row_ [W][lanes_] with one map more.
  void add_scale(int64_t i, int64_t y) {
    const C* blend = rows_[i].blend(y);
    for (int64_t x = 0; x < s_.width; ++x) {
      const Pixel<C> pixel(s_.maps[i].columns, blend, x, lanes_);
      const C weight = s_.reduce == Merge::kAttention ? weights_[i * padded_ + x] : C(1);
      C* out = row_ + x * lanes_;
      for (int64_t k = 0; k < lanes_; k += kW) {
        const V v = pixel.at(k), before = i == 0 ? V{} : load(out + k);
        if (s_.reduce != Merge::kMax)
          store(out + k, before + weight * v);
        else
          store(out + k, i == 0 ? v : select((I)(v > before) | (I)(v != v), v, before));
      }
    }
  }

  // Lanes where map `scale` has the first of the largest values; NaN is the largest.
  I wins(int64_t scale, int64_t x, int64_t k) const {
    const auto value = [&](int64_t i) {
      return Pixel<C>(s_.maps[i].columns, blends_[i], x, lanes_).at(k);
    };
    const V v = value(scale);
    I lost = {};
    for (int64_t i = 0; i < s_.scales; ++i) {
      if (i == scale) continue;
      const V other = value(i);
      const I nan = (I)(other != other);
      lost |= i < scale ? (I)(other >= v) | nan : (I)(other > v) | (nan & (I)(v == v));
    }
    return ~lost;
  }

  const MergeShape& s_;
  const int64_t lanes_, padded_;
  C *row_, *weights_, *products_;  // [W][lanes_], and twice [scales][padded_]
  const C** blends_;
  BlendedRows<S>* rows_;
  const S* logits_ = nullptr;
};

template <class S>
struct MergeEntries {
  static int64_t scratch_bytes(const MergeShape& s, int64_t held) {
    Arena arena(nullptr);
    const Merger<S> merger(arena, s);
    int64_t most = arena.bytes();
    for (int64_t i = 0; held > 0 && i < s.scales; ++i) {
      Arena with_gradients = arena;
      const RowGradients<S> gradients(with_gradients, s.maps[i], held);
      most = max64(most, with_gradients.bytes());
    }
    return most;
  }
  static void merge(const MergeShape& s, const void* const* scores, const void* logits, void* out,
                    int64_t begin, int64_t end, void* scratch) {
    const NoSubnormalResults none;
    Arena arena(scratch);
    Merger<S> merger(arena, s);
    merger.start(scores, logits);
    for (int64_t y = begin; y < end; ++y) merger.merge(y, static_cast<S*>(out));
  }
  static void logit_gradients(const MergeShape& s, const void* grad, const void* const* scores,
                              const void* logits, void* dlogits, int64_t begin, int64_t end,
                              void* scratch) {
    const NoSubnormalResults none;
    Arena arena(scratch);
    Merger<S> merger(arena, s);
    merger.start(scores, logits);
    for (int64_t y = begin; y < end; ++y)
      merger.logit_gradients(static_cast<const S*>(grad), y, static_cast<S*>(dlogits));
  }
  static void score_gradients(const MergeShape& s, int64_t scale, const void* grad,
                              const void* const* scores, const void* logits, void* dscores,
                              int64_t first, int64_t last, int64_t begin, int64_t end,
                              void* scratch) {
    const NoSubnormalResults none;
    Arena arena(scratch);
    Merger<S> merger(arena, s);
    merger.start(scores, logits);
    RowGradients<S> gradients(arena, s.maps[scale], last - first);
    gradients.start(first, last);
    for (int64_t y = begin; y < end; ++y)
      merger.add_gradients(scale, static_cast<const S*>(grad), y, gradients);
    gradients.write(static_cast<S*>(dscores));
  }
  static constexpr MergeKernels kernels = {scratch_bytes, merge, logit_gradients, score_gradients};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(MergeKernels, merge_kernels, MergeEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
