// Local attention on pieces of the map; compiled once per instruction set.
//
// Forward reads query once, key and value once and their halo once more for every group. The
// backward walks down the rows and keeps p and ds of the last ones, so that keys gather from the
// queries around them in a fixed order; rows next to the end of a piece are computed in both
// pieces.
#include "cpu/common/subnormals.h"
#include "maps.h"
#include "softmax.h"

namespace attnops::cpu::ATTNOPS_ISA {
namespace {

constexpr int64_t kMostColumns = 128;                // of a tile
constexpr int64_t kCacheBytes = int64_t{640} << 10;  // of the buffers, where the window allows it
// Channels that are packed at a time: whole pixels are read and written in runs of these.
constexpr int64_t kContiguousDepth = kDepth, kChannelsLastDepth = 4 * kDepth;

// How a piece is cut, and the buffers of one worker; sizes and offsets in elements of C.
//   scores, dp  [row][neighbour][column]; the backward has `reach` rows above and below the group
//               and zeros between the rows of scores, as wide as the halo
//   wide        a tile with its halo: [channel][row][column]
//   narrow      a tile without
//   pixels      sums of all channels for a position of kBlockRows rows, and a pixel of zeros
template <class C>
struct Plan {
  int64_t rows;     // of a group
  int64_t columns;  // of a tile, without its halo
  int64_t depth;    // channels of a tile
  int64_t reach;    // rows of the window above its centre
  int64_t shift;    // columns left of its centre
  int64_t halo;     // that, in whole vectors
  bool full_width;  // a tile has all columns, so that its halo is zeros: rows share them
  int64_t neighbour_stride, score_row, wide_row, wide_channel, narrow_channel, pixel;
  int64_t dp, wide, narrow, pixels, total;  // offsets; scores start at 0

  Plan(const LocalShape& s, bool backward, int64_t group_rows) : rows(group_rows) {
    const int64_t width = round_up(s.width, kWidth<C>);
    const int64_t tiles = (width + kMostColumns - 1) / kMostColumns;
    columns = round_up((width + tiles - 1) / tiles, kWidth<C>);
    full_width = tiles == 1;
    depth = s.channels_last ? kChannelsLastDepth : kContiguousDepth;
    reach = s.rows / 2;
    shift = s.columns / 2 * s.column_step;
    halo = round_up(shift, kWidth<C>);
    neighbour_stride = odd_lines<C>(backward ? width + halo : columns);
    score_row = s.rows * s.columns * neighbour_stride;
    wide_row = columns + (full_width ? halo : 2 * halo);
    wide_channel = odd_lines<C>((rows + 2 * reach) * wide_row + halo);
    narrow_channel = odd_lines<C>(rows * columns);
    const int64_t scores = backward ? (rows + 2 * reach) * score_row + halo : rows * score_row;
    dp = round_up(scores, 16);
    wide = backward ? 2 * dp : dp;
    narrow = wide + depth * wide_channel;
    pixels = narrow + depth * narrow_channel;
    pixel = s.channels_last ? odd_lines<C>(max64(s.key_channels, s.value_channels)) : 0;
    total = pixels + (kBlockRows + 1) * pixel;
  }

  int64_t bytes() const { return round_up(total * static_cast<int64_t>(sizeof(C)), 64); }
};

// The plan for a piece of `most` rows whose groups have as many rows as the cache allows.
template <class C>
Plan<C> plan_for(const LocalShape& s, bool backward, int64_t most) {
  most += backward ? s.rows - 1 : 0;
  int64_t rows = min64(most, kBlockRows);
  while (rows < most && Plan<C>(s, backward, rows + 1).bytes() <= kCacheBytes) ++rows;
  return Plan<C>(s, backward, rows);
}

// Rows [row, row + rows) of the piece's phase, columns [left, left + columns).
struct Group {
  int64_t row, rows, left, columns;
};

// The steps of a piece, for one group and one tile of columns at a time.
template <class S>
class Worker {
 public:
  using C = Compute<S>;

  const Plan<C> plan;

  Worker(const LocalShape& shape, const LocalPiece& piece, bool backward, void* scratch)
      : plan(plan_for<C>(shape, backward, piece.last - piece.first)),
        shape_(shape),
        window_{shape.rows, shape.columns, shape.column_step},
        phase_(piece.phase),
        buffer_(static_cast<C*>(scratch)) {
    const int64_t first = backward ? 0 : plan.wide;
    memset(buffer_ + first, 0, static_cast<size_t>(plan.narrow - first) * sizeof(C));
    memset(buffer_ + plan.pixels, 0, static_cast<size_t>(plan.total - plan.pixels) * sizeof(C));
  }

  int64_t map_row(int64_t row) const { return phase_ + row * shape_.row_step; }
  C* scores(int64_t row) const { return buffer_ + row * plan.score_row; }
  C* dp(int64_t row) const { return scores(row) + plan.dp; }

  // scores = alpha <x[i], y[i + n]>; `scores` stand at the group's first row and column.
  void correlate(const S* x, C alpha, const S* y, int64_t channels, const Group& g,
                 C* scores) const {
    for (int64_t c = 0; c < channels; c += plan.depth) {
      const int64_t depth = min64(plan.depth, channels - c);
      pack(shape_, x, channels, part(c, depth, g), alpha, narrow());
      pack_wide(y, channels, c, depth, g, (C)1);
      for (int64_t d = 0; d < depth; d += kDepth)
        add_scores<C>(
            read_only(narrow(d)), first_neighbour(d), min64(kDepth, depth - d),
            {scores, plan.score_row, shape_.columns * plan.neighbour_stride, plan.neighbour_stride},
            window_, g.rows, g.columns, c + d == 0);
    }
  }

  // out = beta sum_n weights[n] alpha x[. + n].
  void average(WeightView<const C> weights, const S* x, C alpha, int64_t channels, const Group& g,
               C beta, S* out) const {
    if (shape_.channels_last && channels >= kFewestChannels<C>) {
      C* sums = buffer_ + plan.pixels;
      weigh_channels_last<S>(
          shape_, weights, x, part(0, channels, g), window_, plan.shift, alpha * beta,
          reinterpret_cast<const S*>(sums + kBlockRows * plan.pixel), sums, plan.pixel, out);
      return;
    }
    for (int64_t c = 0; c < channels; c += plan.depth) {
      const int64_t depth = min64(plan.depth, channels - c);
      pack_wide(x, channels, c, depth, g, alpha);
      for (int64_t d = 0; d < depth; d += kDepth)
        weigh<C>(weights, first_neighbour(d), min64(kDepth, depth - d), narrow(d), window_, g.rows,
                 g.columns);
      unpack(shape_, read_only(narrow()), beta, part(c, depth, g), out, channels);
    }
  }

  // Weights as they stand in the scores, at the first query.
  WeightView<const C> of_queries(const C* weights) const {
    return {weights, plan.score_row, shape_.columns * plan.neighbour_stride, plan.neighbour_stride};
  }

  // The same weights as keys meet them: neighbour (i, j) of a key has the key as its neighbour
  // (rows - 1 - i, columns - 1 - j). `weights` stand `reach` rows above the first key.
  WeightView<const C> of_keys(const C* weights) const {
    const int64_t last = (shape_.rows * shape_.columns - 1) * plan.neighbour_stride;
    return {weights + last - plan.shift, plan.score_row,
            plan.score_row - shape_.columns * plan.neighbour_stride,
            shape_.column_step - plan.neighbour_stride};
  }

 private:
  static Tile<const C> read_only(const Tile<C>& tile) {
    return {tile.data, tile.row, tile.channel};
  }
  Part part(int64_t c, int64_t depth, const Group& g) const {
    return {c, depth, phase_, g.row, g.rows, g.left, g.columns};
  }
  Tile<C> narrow(int64_t c = 0) const {
    return {buffer_ + plan.narrow + c * plan.narrow_channel, plan.columns, plan.narrow_channel};
  }
  // The wide tile at the first neighbour of the group's first position.
  Tile<const C> first_neighbour(int64_t c) const {
    return {buffer_ + plan.wide + plan.halo - plan.shift + c * plan.wide_channel, plan.wide_row,
            plan.wide_channel};
  }
  void pack_wide(const S* x, int64_t channels, int64_t c, int64_t depth, const Group& g,
                 C alpha) const {
    const int64_t halo = plan.full_width ? 0 : plan.halo;
    pack(shape_, x, channels,
         {c, depth, phase_, g.row - plan.reach, g.rows + 2 * plan.reach, g.left - halo,
          g.columns + 2 * halo},
         alpha, {buffer_ + plan.wide + plan.halo - halo, plan.wide_row, plan.wide_channel});
  }

  const LocalShape& shape_;
  const Window window_;
  const int64_t phase_;
  C* const buffer_;
};

template <class S>
void forward_piece(const LocalShape& s, const LocalPiece& piece, const S* query, const S* key,
                   const S* value, S* out, Compute<S>* lse, void* scratch) {
  using C = Compute<S>;
  const Worker<S> worker(s, piece, false, scratch);
  const Plan<C>& plan = worker.plan;
  const int64_t left = piece.left, valid = piece.right - left;
  const int64_t total = piece.last - piece.first, groups = (total + plan.rows - 1) / plan.rows;
  for (int64_t group = 0; group < groups; ++group) {
    const int64_t row = piece.first + total * group / groups;
    const int64_t rows = piece.first + total * (group + 1) / groups - row;
    const Group g = {row, rows, left, round_up(valid, kWidth<C>)};
    worker.correlate(query, static_cast<C>(s.scale), key, s.key_channels, g, worker.scores(0));
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = worker.map_row(row + r);
      if (s.mask_border)
        mask_scores(s, worker.scores(r), plan.neighbour_stride, y, left, g.columns);
      softmax_row(s, worker.scores(r), plan.neighbour_stride, valid, lse + y * s.width + left);
    }
    worker.average(worker.of_queries(worker.scores(0)), value, (C)1, s.value_channels, g, (C)1,
                   out);
  }
}

template <class S>
void backward_piece(const LocalShape& s, const LocalPiece& piece, const S* grad, const S* query,
                    const S* key, const S* value, const Compute<S>* lse, S* dquery, S* dkey,
                    S* dvalue, void* scratch) {
  using C = Compute<S>;
  const Worker<S> worker(s, piece, true, scratch);
  const Plan<C>& plan = worker.plan;
  const C scale = static_cast<C>(s.scale);
  const int64_t width = round_up(s.width, kWidth<C>), kept = 2 * plan.reach;
  const int64_t begin = max64(0, piece.first - plan.reach);
  const int64_t phase_rows = (s.height - piece.phase + s.row_step - 1) / s.row_step;
  const int64_t end = min64(phase_rows, piece.last + plan.reach);
  const size_t row_bytes = static_cast<size_t>(plan.score_row) * sizeof(C);
  auto for_tiles = [&](int64_t row, int64_t rows, auto&& body) {
    if (rows > 0)
      for (int64_t left = 0; left < width; left += plan.columns)
        body(Group{row, rows, left, min64(plan.columns, width - left)});
  };
  // Row r of the buffers is p and ds of query row `row - kept + r`; zeros for queries outside the
  // map. They serve the queries from `row` on and, with `reach` rows around them, the keys from
  // `row - reach` on.
  for (int64_t row = begin; row - plan.reach < piece.last; row += plan.rows) {
    const int64_t rows = max64(0, min64(plan.rows, end - row));
    if (row > begin) {
      memmove(worker.scores(0), worker.scores(plan.rows), kept * row_bytes);
      memmove(worker.dp(0), worker.dp(plan.rows), kept * row_bytes);
    }
    memset(worker.scores(kept + rows), 0, (plan.rows - rows) * row_bytes);
    memset(worker.dp(kept + rows), 0, (plan.rows - rows) * row_bytes);
    for_tiles(row, rows, [&](const Group& g) {
      const int64_t at = plan.halo + g.left;
      worker.correlate(query, scale, key, s.key_channels, g, worker.scores(kept) + at);
      worker.correlate(grad, (C)1, value, s.value_channels, g, worker.dp(kept) + at);
    });
    for (int64_t r = 0; r < rows; ++r) {
      const int64_t y = worker.map_row(row + r);
      C *const p = worker.scores(kept + r) + plan.halo, *const ds = p + plan.dp;
      if (s.mask_border) mask_scores(s, p, plan.neighbour_stride, y, 0, width);
      softmax_backward_row(s, p, ds, plan.neighbour_stride, s.width, lse + y * s.width);
    }

    const int64_t query_row = max64(row, piece.first);
    for_tiles(query_row, min64(row + rows, piece.last) - query_row, [&](const Group& g) {
      const C* ds = worker.dp(kept + query_row - row) + plan.halo + g.left;
      worker.average(worker.of_queries(ds), key, (C)1, s.key_channels, g, scale, dquery);
    });
    const int64_t key_row = max64(row - plan.reach, piece.first);
    const int64_t key_end = min64(row - plan.reach + plan.rows, piece.last);
    for_tiles(key_row, key_end - key_row, [&](const Group& g) {
      const C* p = worker.scores(key_row - row + plan.reach) + plan.halo + g.left;
      worker.average(worker.of_keys(p + plan.dp), query, scale, s.key_channels, g, (C)1, dkey);
      worker.average(worker.of_keys(p), grad, (C)1, s.value_channels, g, (C)1, dvalue);
    });
  }
}

template <class S>
struct LocalEntries {
  using C = Compute<S>;

  static int64_t piece_columns(const LocalShape& s) { return Plan<C>(s, false, 1).columns; }
  static int64_t scratch_bytes(const LocalShape& s, bool backward) {
    return plan_for<C>(s, backward, (s.height + s.row_step - 1) / s.row_step).bytes();
  }
  static void forward(const LocalShape& s, const LocalPiece& piece, const void* query,
                      const void* key, const void* value, void* out, void* lse, void* scratch) {
    const NoSubnormalResults none;
    forward_piece(s, piece, static_cast<const S*>(query), static_cast<const S*>(key),
                  static_cast<const S*>(value), static_cast<S*>(out), static_cast<C*>(lse),
                  scratch);
  }
  static void backward(const LocalShape& s, const LocalPiece& piece, const void* grad,
                       const void* query, const void* key, const void* value, const void* lse,
                       void* dquery, void* dkey, void* dvalue, void* scratch) {
    const NoSubnormalResults none;
    backward_piece(s, piece, static_cast<const S*>(grad), static_cast<const S*>(query),
                   static_cast<const S*>(key), static_cast<const S*>(value),
                   static_cast<const C*>(lse), static_cast<S*>(dquery), static_cast<S*>(dkey),
                   static_cast<S*>(dvalue), scratch);
  }
  static constexpr LocalKernels kernels = {piece_columns, scratch_bytes, forward, backward};
};

}  // namespace

ATTNOPS_DEFINE_KERNELS(LocalKernels, local_kernels, LocalEntries)

}  // namespace attnops::cpu::ATTNOPS_ISA
