// How the host entries of depthwise convolutions deal out maps to threads.
#pragma once

#include <algorithm>
#include <vector>

#include "cpu/common/host.h"
#include "cpu/common/maps.h"
#include "shape.h"

namespace attnops::cpu {

inline DepthwiseMaps depthwise_maps(const Tensor& x) {
  STD_TORCH_CHECK(x.dim() == 4, "expected maps [B, C, H, W]");
  return {x.size(0), x.size(1), x.size(2), x.size(3), is_channels_last(x)};
}

// The maps in pieces of up to `most` columns, a multiple of the lanes. All rows of all groups, one
// after the other, are cut into one run for every worker; the pieces of a run are whole planes but
// for its ends.
class DepthwiseWork {
 public:
  DepthwiseWork(const DepthwiseMaps& m, int64_t lanes, int64_t most) {
    const int64_t groups = m.channels_last ? m.batch * ((m.channels + lanes - 1) / lanes)
                                           : (m.batch * m.channels + lanes - 1) / lanes;
    const int64_t tiles = (m.width + most - 1) / most;
    columns_ = ((m.width + tiles - 1) / tiles + lanes - 1) / lanes * lanes;
    const int64_t blocks = (m.height + kPieceRows - 1) / kPieceRows;
    const int64_t total = groups * tiles * blocks, workers = std::min(thread_count(), total);
    for (int64_t worker = 0; worker < workers; ++worker) {
      const int64_t end = total * (worker + 1) / workers;
      for (int64_t at = total * worker / workers; at < end;) {
        const int64_t first = at % blocks, last = std::min(blocks, first + end - at);
        const int64_t tile = at / blocks % tiles;
        pieces_.push_back({at / blocks / tiles, first * kPieceRows,
                           std::min(m.height, last * kPieceRows), tile * columns_,
                           std::min(m.width, (tile + 1) * columns_)});
        at += last - first;
      }
      ends_.push_back(static_cast<int64_t>(pieces_.size()));
    }
  }

  const std::vector<DepthwisePiece>& pieces() const { return pieces_; }
  int64_t columns() const { return columns_; }  // of the widest piece

  // Calls body(index of the piece, piece, scratch) for all pieces.
  template <class Body>
  void run(int64_t scratch_bytes, const Body& body) const {
    const int64_t workers = static_cast<int64_t>(ends_.size());
    const Scratch scratch(workers * scratch_bytes);
    for_each_worker(workers, [&](int64_t worker) {
      for (int64_t i = worker == 0 ? 0 : ends_[worker - 1]; i < ends_[worker]; ++i)
        body(i, pieces_[i], scratch.at(worker * scratch_bytes));
    });
  }

 private:
  int64_t columns_;
  std::vector<DepthwisePiece> pieces_;
  std::vector<int64_t> ends_;  // pieces of worker w end at ends_[w]
};

}  // namespace attnops::cpu
