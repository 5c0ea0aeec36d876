// Maps of scores of classes that are resized: plain data.
#pragma once

#include "axis.h"

namespace attnops::cpu {

// One batch item [classes, h, w], contiguous or channels_last, resized to [H, W].
struct ScoreMap {
  int64_t classes;
  bool channels_last;
  ResizeAxis rows, columns;
};

}  // namespace attnops::cpu
