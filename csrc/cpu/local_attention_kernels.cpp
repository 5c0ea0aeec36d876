// Local attention on strips of the map; compiled once per instruction set.
//
//   scores[i, n] = scale <query[i], key[i + n]>      n: neighbour in the window
//   p[i, n] = softmax_n scores[i, n]
//   out[i] = sum_n p[i, n] value[i + n]
//
// and, with dp[i, n] = <grad[i], value[i + n]> and ds = p (dp - sum_n p dp),
//
//   dquery[i] = scale sum_n ds[i, n] key[i + n]
//   dkey[j] = scale sum_n ds[j - n, n] query[j - n]     dvalue[j] = sum_n p[j - n, n] grad[j - n]
//
// A strip is done in groups of rows of one phase, and a group kDepth channels at a time: they are
// packed into tiles (local_pack.h) that meet the scores of the group (local_window.h). Everything
// stays in the second-level cache; a map is read once and its halo once more for every group.
// The backward walks down the rows and keeps p and ds of the last rows, so that keys gather what
// the queries around them computed: rows at the ends of a strip are computed in both strips.
#include "local_pack.h"
#include "local_softmax.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int64_t kForwardRows = 16, kBackwardRows = 8;  // of a group
constexpr int64_t kMostColumns = 128;                    // of a tile
constexpr int64_t kScoreBytes = 256 << 10;               // of a group, if the window allows it

// How a strip is cut, and the buffers of one worker; sizes and offsets in elements of C.
template <class C>
struct Plan {
  int64_t rows;     // of a group
  int64_t columns;  // of a tile, without its halo
  int64_t reach;    // rows of the window above its centre
  int64_t shift;    // columns left of the centre
  int64_t halo;     // that, in whole vectors
  int64_t tap_stride, score_rows, scores, wide_row, wide_channel, narrow_channel;
  int64_t dp, wide, narrow, total;  // offsets; the scores stand first

  Plan(const LocalShape& s, bool backward) {
    const int64_t width = round_up(s.width, kWidth<C>), taps = s.rows * s.columns;
    columns = round_up(width / ((width + kMostColumns - 1) / kMostColumns), kWidth<C>);
    reach = s.rows / 2;
    shift = s.columns / 2 * s.column_step;
    halo = round_up(shift, kWidth<C>);
    tap_stride = odd_lines<C>(backward ? width + 2 * halo : columns);
    const int64_t row_bytes = taps * tap_stride * static_cast<int64_t>(sizeof(C));
    const int64_t most = backward ? kBackwardRows : kForwardRows;
    const int64_t phase_rows = round_up((s.height + s.row_step - 1) / s.row_step, 4);
    rows = min64(phase_rows, max64(4, min64(most, kScoreBytes / row_bytes / 4 * 4)));
    score_rows = backward ? rows + 2 * reach : rows;
    scores = score_rows * taps * tap_stride;
    wide_row = columns + 2 * halo;
    wide_channel = odd_lines<C>((rows + 2 * reach) * wide_row);
    narrow_channel = odd_lines<C>(rows * columns);
    dp = scores;
    wide = dp + (backward ? scores : 0);
    narrow = wide + kDepth * wide_channel;
    total = narrow + kDepth * narrow_channel;
  }
};

// Works on rows of one phase and the columns of one tile at a time.
template <class S>
class Worker {
 public:
  using C = Compute<S>;

  Worker(const LocalShape& shape, bool backward, int64_t phase, void* scratch)
      : plan(shape, backward),
        shape_(shape),
        window_{shape.rows, shape.columns, shape.column_step},
        phase_(phase),
        phase_rows_((shape.height - phase + shape.row_step - 1) / shape.row_step),
        buffer_(static_cast<C*>(scratch)) {}

  const Plan<C> plan;

  int64_t phase_rows() const { return phase_rows_; }
  int64_t map_row(int64_t row) const { return phase_ + row * shape_.row_step; }
  C* scores(int64_t row) const { return buffer_ + row * score_row(); }
  C* dp(int64_t row) const { return buffer_ + plan.dp + row * score_row(); }
  int64_t score_row() const { return shape_.rows * shape_.columns * plan.tap_stride; }

  // scores = alpha <x[i], y[i + n]> of `rows` rows from `row`, `columns` columns from `left`.
  void correlate(const S* x, C alpha, const S* y, int64_t channels, int64_t row, int64_t rows,
                 int64_t left, int64_t columns, C* scores) const {
    for (int64_t c = 0; c < channels; c += kDepth) {
      const int64_t depth = min64(kDepth, channels - c);
      pack(shape_, x, channels, phase_, {c, depth, row, rows, left, columns}, alpha, narrow());
      pack_wide(y, channels, c, depth, row, rows, left, columns, (C)1);
      add_scores<C>({narrow().data, narrow().row, narrow().channel}, first_tap(), depth,
                    {scores, score_row(), shape_.columns * plan.tap_stride, plan.tap_stride},
                    window_, rows, columns, c == 0);
    }
  }

  // out = beta sum_n weights[n] alpha x[. + n].
  void average(Taps<const C> weights, const S* x, C alpha, int64_t channels, int64_t row,
               int64_t rows, int64_t left, int64_t columns, C beta, S* out) const {
    for (int64_t c = 0; c < channels; c += kDepth) {
      const int64_t depth = min64(kDepth, channels - c);
      pack_wide(x, channels, c, depth, row, rows, left, columns, alpha);
      weigh<C>(weights, first_tap(), depth, narrow(), window_, rows, columns);
      unpack(shape_, Tile<const C>{narrow().data, narrow().row, narrow().channel}, beta,
             {c, depth, row, rows, left, columns}, out, channels, phase_);
    }
  }

  // Weights of queries as they stand in the scores.
  Taps<const C> of_queries(const C* weights) const {
    return {weights, score_row(), shape_.columns * plan.tap_stride, plan.tap_stride};
  }

  // Weights of the same tensor as keys meet them: neighbour (i, j) of a key has the key as its
  // neighbour (rows - 1 - i, columns - 1 - j). `weights` stand at row - reach of the first key.
  Taps<const C> of_keys(const C* weights) const {
    const int64_t last = (shape_.rows * shape_.columns - 1) * plan.tap_stride;
    return {weights + last - plan.shift, score_row(),
            score_row() - shape_.columns * plan.tap_stride, shape_.column_step - plan.tap_stride};
  }

 private:
  Tile<C> narrow() const { return {buffer_ + plan.narrow, plan.columns, plan.narrow_channel}; }

  void pack_wide(const S* x, int64_t channels, int64_t c, int64_t depth, int64_t row, int64_t rows,
                 int64_t left, int64_t columns, C alpha) const {
    const Part part = {c,
                       depth,
                       row - plan.reach,
                       rows + 2 * plan.reach,
                       left - plan.halo,
                       columns + 2 * plan.halo};
    pack(shape_, x, channels, phase_, part, alpha,
         Tile<C>{buffer_ + plan.wide, plan.wide_row, plan.wide_channel});
  }

  Tile<const C> first_tap() const {
    return {buffer_ + plan.wide + plan.halo - plan.shift, plan.wide_row, plan.wide_channel};
  }

  const LocalShape& shape_;
  const Window window_;
  const int64_t phase_, phase_rows_;
  C* const buffer_;
};

template <class S>
void forward_strip(const LocalShape& s, const LocalStrip& strip, const S* query, const S* key,
                   const S* value, S* out, Compute<S>* lse, void* scratch) {
  using C = Compute<S>;
  const Worker<S> worker(s, false, strip.phase, scratch);
  const int64_t left = strip.left, valid = strip.right - left;
  const int64_t columns = round_up(valid, kWidth<C>);
  for (int64_t row = strip.first; row < strip.last; row += worker.plan.rows) {
    const int64_t rows = min64(worker.plan.rows, strip.last - row);
    worker.correlate(query, static_cast<C>(s.scale), key, s.key_channels, row, rows, left, columns,
                     worker.scores(0));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = worker.map_row(row + r);
      if (s.mask) mask_scores(s, worker.scores(r), worker.plan.tap_stride, y, left, columns);
      softmax_row(s, worker.scores(r), worker.plan.tap_stride, valid, lse + y * s.width + left);
    }
    worker.average(worker.of_queries(worker.scores(0)), value, (C)1, s.value_channels, row, rows,
                   left, columns, (C)1, out);
  }
}

template <class S>
void backward_strip(const LocalShape& s, const LocalStrip& strip, const S* grad, const S* query,
                    const S* key, const S* value, const Compute<S>* lse, S* dquery, S* dkey,
                    S* dvalue, void* scratch) {
  using C = Compute<S>;
  const Worker<S> worker(s, true, strip.phase, scratch);
  const Plan<C>& plan = worker.plan;
  const C scale = static_cast<C>(s.scale);
  const int64_t width = round_up(s.width, kWidth<C>);
  auto for_tiles = [&](auto&& body) {
    for (int64_t left = 0; left < width; left += plan.columns)
      body(left, min64(plan.columns, width - left));
  };
  auto clear = [&](int64_t first, int64_t rows) {
    const size_t bytes = static_cast<size_t>(rows * worker.score_row()) * sizeof(C);
    memset(worker.scores(first), 0, bytes);
    memset(worker.dp(first), 0, bytes);
  };
  // Buffers hold p and ds of query rows from row - 2 reach on, with zeros for queries outside the
  // map.
  const int64_t begin = max64(0, strip.first - plan.reach), kept = 2 * plan.reach;
  const int64_t end = min64(worker.phase_rows(), strip.last + plan.reach);
  clear(0, plan.score_rows);
  for (int64_t row = begin; row - plan.reach < strip.last; row += plan.rows) {
    if (row > begin) {
      const size_t bytes = static_cast<size_t>(kept * worker.score_row()) * sizeof(C);
      memmove(worker.scores(0), worker.scores(plan.rows), bytes);
      memmove(worker.dp(0), worker.dp(plan.rows), bytes);
    }
    const int64_t rows = max64(0, min64(plan.rows, end - row));
    if (rows < plan.rows) clear(kept + rows, plan.rows - rows);
    C *const p = worker.scores(kept) + plan.halo, *const ds = worker.dp(kept) + plan.halo;
    if (rows > 0)
      for_tiles([&](int64_t left, int64_t columns) {
        worker.correlate(query, scale, key, s.key_channels, row, rows, left, columns, p + left);
        worker.correlate(grad, (C)1, value, s.value_channels, row, rows, left, columns, ds + left);
      });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = worker.map_row(row + r), at = r * worker.score_row();
      if (s.mask) mask_scores(s, p + at, plan.tap_stride, y, 0, width);
      softmax_backward_row(s, p + at, ds + at, plan.tap_stride, s.width, lse + y * s.width);
    }

    const int64_t query_first = max64(row, strip.first);
    const int64_t queries = min64(row + rows, strip.last) - query_first;
    if (queries > 0)
      for_tiles([&](int64_t left, int64_t columns) {
        worker.average(worker.of_queries(ds + (query_first - row) * worker.score_row() + left), key,
                       (C)1, s.key_channels, query_first, queries, left, columns, scale, dquery);
      });
    const int64_t key_first = max64(row - plan.reach, strip.first);
    const int64_t keys = min64(row + plan.rows - plan.reach, strip.last) - key_first;
    const int64_t window_row = key_first - row + plan.reach;
    if (keys > 0)
      for_tiles([&](int64_t left, int64_t columns) {
        const int64_t at = plan.halo + left;
        worker.average(worker.of_keys(worker.dp(window_row) + at), query, scale, s.key_channels,
                       key_first, keys, left, columns, (C)1, dkey);
        worker.average(worker.of_keys(worker.scores(window_row) + at), grad, (C)1, s.value_channels,
                       key_first, keys, left, columns, (C)1, dvalue);
      });
  }
}

template <class S>
struct Table {
  using C = Compute<S>;

  static int64_t strip_columns(const LocalShape& s) { return Plan<C>(s, false).columns; }
  static int64_t scratch_bytes(const LocalShape& s, bool backward) {
    return round_up(Plan<C>(s, backward).total * static_cast<int64_t>(sizeof(C)), 64);
  }
  static void forward(const LocalShape& s, const LocalStrip& strip, const void* query,
                      const void* key, const void* value, void* out, void* lse, void* scratch) {
    forward_strip(s, strip, static_cast<const S*>(query), static_cast<const S*>(key),
                  static_cast<const S*>(value), static_cast<S*>(out), static_cast<C*>(lse),
                  scratch);
  }
  static void backward(const LocalShape& s, const LocalStrip& strip, const void* grad,
                       const void* query, const void* key, const void* value, const void* lse,
                       void* dquery, void* dkey, void* dvalue, void* scratch) {
    backward_strip(s, strip, static_cast<const S*>(grad), static_cast<const S*>(query),
                   static_cast<const S*>(key), static_cast<const S*>(value),
                   static_cast<const C*>(lse), static_cast<S*>(dquery), static_cast<S*>(dkey),
                   static_cast<S*>(dvalue), scratch);
  }
  static constexpr LocalKernels kernels = {strip_columns, scratch_bytes, forward, backward};
};

}  // namespace

const LocalKernels& local_kernels(DType dtype) {
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
