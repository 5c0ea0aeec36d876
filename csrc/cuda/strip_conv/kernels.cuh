// Forward of strip convolutions:
//
//   a = depthwise(x) + b
//   out = a + sum over strips s of (vertical_s(horizontal_s(a) + b_h) + b_v)
//
// where a and horizontal(a) are zero outside the map.
//
// x, out `[B, C, H, W]`, contiguous or channels_last; weights `[C, taps]` of the local kernel, row
// by row, then of row and column of every strip; biases `[C]` of the same, or none.
//
// Grid: one block a tile (plan.h) of a few channels. a and one horizontal result at a
// time are in shared memory, for the tile and what its columns reach; nothing of them is in global
// memory. Moved per element: one write and r reads, where r is the size of the halo over that of
// the tile, about 2.5 to 6; what r has above 1 comes from L2 mostly.
//
// Source: Guo et al., SegNeXt (NeurIPS 2022), eq. (1).
#pragma once

#include "tile.cuh"

namespace attnops::cuda {

template <typename T>
__global__ void __launch_bounds__(kStripThreads, 2)
    strip_forward_kernel(const T* __restrict__ p_x, T* __restrict__ p_out,
                         const __grid_constant__ StripParameters<const T> parameters,
                         const __grid_constant__ StripPlan plan) {
  using Acc = accumulator_t<T>;
  ATTNOPS_DYNAMIC_SHARED(shared);
  const StripTile tile = make_strip_tile(plan);
  const int lanes = plan.lanes;
  Acc* s_parameters = reinterpret_cast<Acc*>(shared);  // [taps + kernels, lanes]
  Acc* s_local = s_parameters + plan.parameters() * lanes;
  Acc* s_source = s_local + plan.local().size() * lanes;
  Acc* s_horizontal = s_source;  // x is done with once a is there

  tile.load_parameters(parameters, s_parameters);
  tile.load(p_x, plan.source(), plan.reach_y + plan.kernel_height / 2,
            plan.reach_x + plan.kernel_width / 2, s_source);
  __syncthreads();
  apply_local(tile, s_source, s_parameters, s_local);
  __syncthreads();

  // This thread's outputs: kStripRun rows of a column.
  const int column = threadIdx.x / lanes % plan.tile_columns;
  const int row = threadIdx.x / lanes / plan.tile_columns * kStripRun;
  const bool owns = row < plan.tile_rows && tile.is_inside(tile.y + row, tile.x + column);
  Acc sums[kStripRun] = {};
  if (owns) {
    const StripPlane<Acc> local = tile.plane(s_local, plan.local());
#pragma unroll
    for (int j = 0; j < kStripRun; ++j) {
      sums[j] = *local.at(plan.reach_y + row + j, plan.reach_x + column);
    }
  }
  const Acc* s_taps = s_parameters + plan.kernel_height * plan.kernel_width * lanes + tile.lane();
  const Acc* s_bias = s_parameters + (plan.taps + 1) * lanes + tile.lane();
  for (int s = 0; s < plan.strips; ++s) {
    apply_row(tile, s_local, s_taps, plan.rows[s], s_bias[0], plan.columns[s] / 2, s_horizontal);
    s_taps += plan.rows[s] * lanes;
    __syncthreads();
    if (owns) {
      const StripPlane<Acc> horizontal = tile.plane(s_horizontal, plan.horizontal());
      Acc column_sums[kStripRun] = {s_bias[lanes], s_bias[lanes], s_bias[lanes], s_bias[lanes]};
      correlate_run(column_sums, horizontal.at(row, column), horizontal.row, s_taps, lanes,
                    plan.columns[s]);
#pragma unroll
      for (int j = 0; j < kStripRun; ++j) sums[j] += column_sums[j];
    }
    s_taps += plan.columns[s] * lanes;
    s_bias += 2 * lanes;
    __syncthreads();
  }
  if (!owns || tile.channel() >= plan.channels) return;
#pragma unroll
  for (int j = 0; j < kStripRun; ++j) {
    if (tile.y + row + j < plan.height) {
      p_out[tile.offset(tile.y + row + j, tile.x + column)] = narrow<T>(sums[j]);
    }
  }
}

}  // namespace attnops::cuda
