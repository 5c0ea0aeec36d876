#include "workspace.h"

#include "cpu/common/isa.h"

namespace attnops::cpu {
namespace {

// Items smaller than this stay whole, one a thread; larger ones are cut up for all threads, so that
// what is worked on at a time stays in the last-level cache.
constexpr int64_t kSmallItem = int64_t{2} << 20;
constexpr int64_t kPackedBudget = int64_t{64} << 20;   // a packed copy of x, up to here
constexpr int64_t kSharesBudget = int64_t{128} << 20;  // partial sums and scratch of all shares
constexpr int64_t kShortestShare = 48;                 // positions
constexpr int64_t kShareUnit = 16;                     // positions: cache lines are not shared

int64_t share_start(int64_t total, int64_t index, int64_t count, int64_t unit) {
  return index == count ? total : total * index / count / unit * unit;
}

}  // namespace

const NmfKernels& nmf_kernels_for(DType dtype) { ATTNOPS_SELECT_KERNELS(nmf_kernels, dtype); }
const NmfKernels& mixed_nmf_kernels_for(NmfProducts products) {
  ATTNOPS_SELECT_KERNELS(mixed_nmf_kernels, products);
}

NmfShape nmf_shape(const Tensor& x, const Tensor& bases, double inv_t, double eps) {
  STD_TORCH_CHECK(x.dim() == 3 && bases.dim() == 3,
                  "nmf: expected x [B, D, N] and bases [B, D, R]");
  STD_TORCH_CHECK(bases.is_contiguous(), "nmf: expected contiguous bases");
  const bool channels_inner = x.size(1) > 1 && x.stride(1) == 1 && !x.is_contiguous();
  return {x.size(1), x.size(2), bases.size(2), inv_t, eps, channels_inner};
}

NmfGroup::NmfGroup(const Tensor& x, const NmfKernels& kernels, const NmfShape& shape, bool backward,
                   int64_t passes)
    : shape_(shape),
      bytes_(kernels.bytes(shape, backward)),
      xs_(x),
      tile_(kernels.tile),
      batch_(x.size(0)),
      threads_(std::clamp<int64_t>(kSharesBudget / (bytes_.partial + bytes_.scratch), 1,
                                   thread_count())),
      size_(x.numel() / batch_ * static_cast<int64_t>(x.element_size()) < kSmallItem
                ? std::min(batch_, threads_)
                : 1),
      most_shares_((shape.positions + kShortestShare - 1) / kShortestShare),
      item_tiles_(shape.positions / tile_ + std::min(threads_, most_shares_) + 1),
      packs_(bytes_.tile > 0 && passes > 1 && size_ * item_tiles_ * bytes_.tile <= kPackedBudget),
      state_(size_ * bytes_.state),
      partials_(std::max(size_, threads_) * bytes_.partial),
      scratch_(std::max(size_, threads_) * bytes_.scratch),
      packed_(packs_ ? size_ * item_tiles_ * bytes_.tile : 0) {}

NmfShare NmfGroup::share(int64_t item, int64_t index) const {
  NmfShare s;
  s.index = index;
  s.count = shares_;
  s.first = share_start(shape_.positions, index, shares_, kShareUnit);
  s.last = share_start(shape_.positions, index + 1, shares_, kShareUnit);
  s.row = share_start(shape_.channels, index, shares_, kNmfRowUnit);
  s.row_end = share_start(shape_.channels, index + 1, shares_, kNmfRowUnit);
  s.x = xs_(first_ + item);
  // Every share before this one has at most one tile that is not full.
  const int64_t tile = item * item_tiles_ + s.first / tile_ + index;
  s.packed = packs_ ? packed_.at(tile * bytes_.tile) : nullptr;
  s.state = state_.at(item * bytes_.state);
  s.partials = partials_.at(item * shares_ * bytes_.partial);
  s.scratch = scratch_.at((item * shares_ + index) * bytes_.scratch);
  return s;
}

}  // namespace attnops::cpu
