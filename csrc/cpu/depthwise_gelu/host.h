// GELU of a depthwise convolution. With z = conv(x) + bias:
//
//   out = gelu(z)    dz = grad gelu'(z)    dx = conv^T(dz)
//   dweight[i, j] = sum_yx dz[y, x] x[y + i, x + j]    dbias = sum_yx dz[y, x]
//
// Maps are cut into units: strips of rows of a plane where contiguous, rows of all or of some
// channels where channels_last. Nothing is kept from forward to backward: z and dz are computed
// again for the unit, with the rows around it that its dx sees. A strip of a plane stands padded in
// the first-level cache; channels_last rows are read where they are, the last rows of dz stay in a
// ring. Forward reads x once and writes out once; backward reads x and grad and writes dx, rows
// between units twice.
//
// host.cpp cuts and adds up the sums of units in order; contiguous.h and depthwise/channels_last.h
// convolve in either layout; depthwise/gelu.h is the function; kernels.cpp holds the steps of a
// unit.
#pragma once

#include <cstdint>

#include "cpu/common/isa.h"
#include "cpu/common/map_sizes.h"

namespace attnops::cpu {

// weight [channels, 1, kernel_height, kernel_width], bias [channels] or null.
struct GeluShape {
  MapSizes maps;
  int64_t kernel_height, kernel_width;

  int64_t taps() const { return kernel_height * kernel_width; }
};

// Rows [first, last) and channels [channel, channel + channels) of a batch item; one channel where
// maps are contiguous.
struct GeluUnit {
  int64_t item, channel, channels, first, last;
};

// Entry points of one instruction set and one element type. Tensors are whole; scratch is private
// to the caller and aligned to 64 bytes.
struct GeluKernels {
  int64_t lanes;
  // Rows of a unit of contiguous maps.
  int64_t (*contiguous_rows)(const GeluShape&);

  // Weight and bias as the kernels want them, shared by all units.
  int64_t (*parameter_bytes)(const GeluShape&);
  void (*pack)(const GeluShape&, const void* weight, const void* bias, void* parameters);

  // For units of up to so many rows and channels.
  int64_t (*scratch_bytes)(const GeluShape&, int64_t rows, int64_t channels, bool backward);
  void (*forward)(const GeluShape&, const GeluUnit&, const void* parameters, const void* x,
                  void* out, void* scratch);
  // dx of a unit, and what it adds to dweight and dbias: sums [taps + 1][channels of the unit,
  // padded to whole vectors].
  void (*backward)(const GeluShape&, const GeluUnit&, const void* parameters, const void* grad,
                   const void* x, void* dx, double* sums, void* scratch);

  // out [count] from sums that stand `stride` apart.
  void (*round)(const double* sums, int64_t stride, int64_t count, void* out);
};

ATTNOPS_DECLARE_KERNELS(GeluKernels, gelu_kernels)

}  // namespace attnops::cpu
