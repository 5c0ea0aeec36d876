// Weights in panels of 16 rows, the order in which products read them, whatever the instruction
// set: [rows / 16][columns][16] in float or double, [rows / 16][columns / 2][16][2] in bfloat16.
#pragma once

#include <cstdint>

namespace attnops::cpu {

constexpr int64_t kPanelRows = 16;

constexpr int64_t padded_to_panels(int64_t rows) {
  return (rows + kPanelRows - 1) / kPanelRows * kPanelRows;
}

}  // namespace attnops::cpu
