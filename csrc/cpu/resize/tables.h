// Owners of the tables of a bilinear resize; host code.
#pragma once

#include <vector>

#include "axis.h"
#include "common/bilinear.h"
#include "cpu/common/dtype.h"

namespace attnops::cpu {

class ResizeTables {
 public:
  ResizeTables(int64_t inputs, int64_t outputs, bool align_corners, DType dtype)
      : inputs_(inputs), first_(outputs), second_(outputs), weight_(outputs) {
    if (dtype == DType::kFloat64)
      fill<double>(outputs, align_corners);
    else
      fill<float>(outputs, align_corners);
  }

  ResizeAxis view() const {
    return {inputs_, static_cast<int64_t>(first_.size()), first_.data(), second_.data(),
            weight_.data()};
  }

 private:
  template <class T>
  void fill(int64_t outputs, bool align_corners) {
    const T scale = resize_scale<T>(inputs_, outputs, align_corners);
    for (int64_t i = 0; i < outputs; ++i) {
      const ResizePair<T> pair = resize_pair<T>(i, inputs_, outputs, scale, align_corners);
      first_[i] = pair.first;
      second_[i] = pair.second;
      weight_[i] = pair.weight;
    }
  }

  int64_t inputs_;
  std::vector<int64_t> first_, second_;
  std::vector<double> weight_;
};

}  // namespace attnops::cpu
