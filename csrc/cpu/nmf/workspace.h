// What forward and backward of nmf share on the host: items, shares and their memory.
#pragma once

#include <algorithm>
#include <optional>

#include "cpu/common/host.h"
#include "host.h"

namespace attnops::cpu {

const NmfKernels& nmf_kernels_for(DType dtype);
const NmfKernels& mixed_nmf_kernels_for(NmfProducts products);

NmfShape nmf_shape(const Tensor& x, const Tensor& bases, double inv_t, double eps);

// Addresses one batch item of a dense tensor [B, ...] or, by step, of [steps, B, ...]; null where
// there is no tensor or nothing in it.
class NmfItems {
 public:
  NmfItems() = default;
  explicit NmfItems(const std::optional<Tensor>& x, bool has_steps = false) {
    if (!x || x->numel() == 0) return;
    data_ = static_cast<char*>(x->mutable_data_ptr());
    step_bytes_ = x->numel() / x->size(0) * static_cast<int64_t>(x->element_size());
    bytes_ = has_steps ? step_bytes_ / x->size(1) : step_bytes_;
  }
  char* operator()(int64_t item, int64_t step = 0) const {
    return data_ ? data_ + step * step_bytes_ + item * bytes_ : nullptr;
  }

 private:
  char* data_ = nullptr;
  int64_t bytes_ = 0, step_bytes_ = 0;
};

// The items that are worked on at a time, each cut into shares, and the memory of the kernels.
// Everything depends on shapes and the number of threads only, so sums are the same in every run.
class NmfGroup {
 public:
  // `passes`: how often x will be read.
  NmfGroup(const Tensor& x, const NmfKernels& kernels, const NmfShape& shape, bool backward,
           int64_t passes);

  // Calls body(first item) for one group after the other.
  template <class Body>
  void for_each(const Body& body) {
    for (first_ = 0; first_ < batch_; first_ += size_) {
      items_ = std::min(size_, batch_ - first_);
      shares_ = std::clamp<int64_t>(threads_ / items_, 1, most_shares_);
      body(first_);
    }
  }

  // Calls body(item, share) for all shares of the group's items; returns when all are done.
  template <class Body>
  void run(const Body& body) const {
    for_each_worker(items_ * shares_, [&](int64_t unit) {
      const int64_t item = unit / shares_;
      body(first_ + item, share(item, unit % shares_));
    });
  }

  // Scratch of `bytes` for each item of a group.
  Scratch for_items(int64_t bytes) const { return Scratch(size_ * bytes); }
  int64_t first() const { return first_; }
  bool packs() const { return packs_; }

 private:
  NmfShare share(int64_t item, int64_t index) const;

  NmfShape shape_;
  NmfBytes bytes_;
  NmfItems xs_;
  int64_t tile_, batch_, threads_, size_, most_shares_, item_tiles_;
  bool packs_;
  int64_t first_ = 0, items_ = 0, shares_ = 0;
  Scratch state_, partials_, scratch_, packed_;
};

}  // namespace attnops::cpu
