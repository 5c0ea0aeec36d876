// A block's tile of local attention in shared memory: where its positions lie, and how channels of
// maps get into it and out of it.
#pragma once

#if !defined(ATTNOPS_EMULATION)
#include <cuda_pipeline_primitives.h>
#endif

#include "cuda/common/element.cuh"
#include "plan.h"

namespace attnops::cuda {

template <typename T>
constexpr int kWidth = kAccessBytes / sizeof(T);

// Channels of one position in shared memory.
template <typename T>
using Channels = Vector<T, kWidth<T>>;

// One sample of a map `[C, H, W]`, contiguous or channels_last.
struct SampleLayout {
  int channels;
  bool wide;  // 16-byte accesses: channels_last, aligned, a multiple of kWidth channels
  bool channels_last;
  int64_t pixels;

  __device__ __forceinline__ int64_t size() const { return channels * pixels; }
  __device__ __forceinline__ int64_t stride() const { return channels_last ? 1 : pixels; }
  __device__ __forceinline__ int64_t offset(int pixel, int channel) const {
    return channels_last ? static_cast<int64_t>(pixel) * channels + channel
                         : channel * pixels + pixel;
  }
};

// *s_to <- *p_from without a register between; finish_copies ends all of the thread's copies.
template <typename T>
__device__ __forceinline__ void copy_channels(Channels<T>* s_to, const T* p_from) {
#if defined(ATTNOPS_EMULATION)
  *s_to = *reinterpret_cast<const Channels<T>*>(p_from);
#else
  __pipeline_memcpy_async(s_to, p_from, kAccessBytes);
#endif
}

__device__ __forceinline__ void finish_copies() {
#if !defined(ATTNOPS_EMULATION)
  __pipeline_commit();
  __pipeline_wait_prior(0);
#endif
}

template <typename T>
__device__ __forceinline__ Channels<T> no_channels() {
  Channels<T> zeros;
#pragma unroll
  for (int e = 0; e < kWidth<T>; ++e) zeros.value[e] = narrow<T>(0);
  return zeros;
}

// kWidth elements `stride` apart, the first `count` of them; zeros for the others.
template <typename T>
__device__ __forceinline__ Channels<T> gather_channels(const T* p, int64_t stride, int count) {
  Channels<T> gathered = no_channels<T>();
  if (count >= kWidth<T>) {
#pragma unroll
    for (int e = 0; e < kWidth<T>; ++e) gathered.value[e] = p[e * stride];
  } else {
#pragma unroll
    for (int e = 0; e < kWidth<T> - 1; ++e) {
      if (e < count) gathered.value[e] = p[e * stride];
    }
  }
  return gathered;
}

// Calls function(vector, position) for every pair with vector < vectors and position < positions,
// each from one thread; neighbouring threads get what is neighbouring in memory.
template <typename Function>
__device__ __forceinline__ void for_each_vector(bool channels_last, int vectors, int positions,
                                                const Function& function) {
  const int vectors_abreast = channels_last ? kStaged : 1;
  int vector = threadIdx.x % vectors_abreast;
  int position = threadIdx.x / vectors_abreast;
  for (;;) {
    while (position >= positions) {
      position -= positions;
      vector += vectors_abreast;
    }
    if (vector >= vectors) return;
    function(vector, position);
    position += blockDim.x / vectors_abreast;
  }
}

template <typename T>
struct Tile {
  using Acc = accumulator_t<T>;

  const LocalPlan& plan;
  int64_t sample;
  Channels<T>* s_channels;  // [kStaged, plane]: the halo's positions, then the tile's own
  Acc* s_weights;           // one or two of [neighbours, runs, kRun]
  int* s_pixel;             // [plane]: h * W + w of a position, -1: none of the map

  __device__ __forceinline__ SampleLayout layout(bool keys) const {
    return {keys ? plan.key_channels : plan.value_channels,
            keys ? plan.wide_keys : plan.wide_values, plan.channels_last, plan.pixels()};
  }

  // Numbers of weights from one neighbour to the next, and in one of the arrays.
  __device__ __forceinline__ int neighbour_stride() const { return plan.runs() * kRun; }
  __device__ __forceinline__ int weights() const { return plan.neighbours() * neighbour_stride(); }

  // The column of a run's first position; those that follow are tile_images further each.
  __device__ __forceinline__ int first_column(int run) const {
    const int across = run / plan.tile_rows;
    return across / plan.tile_images * kRun * plan.tile_images + across % plan.tile_images;
  }
  // Its own position, and the first neighbour of its window.
  __device__ __forceinline__ int own_position(int run) const {
    return plan.halo_positions() + run % plan.tile_rows * plan.own_pitch + first_column(run);
  }
  __device__ __forceinline__ int halo_position(int run) const {
    return run % plan.tile_rows * plan.halo_pitch + first_column(run);
  }

  // The pixel of position `index` of [runs, kRun], or -1.
  __device__ __forceinline__ int own_pixel(int index) const {
    return s_pixel[own_position(index / kRun) + index % kRun * plan.tile_images];
  }

  // Calls function(weight, pixel) for the neighbours of position `index` of [runs, kRun] in order:
  // the number of its weight, and the neighbour's pixel or -1.
  template <typename Function>
  __device__ __forceinline__ void for_each_neighbour(int index, const Function& function) const {
    const int* s_row = s_pixel + halo_position(index / kRun) + index % kRun * plan.tile_images;
    for (int row = 0; row < plan.kernel_height; ++row, s_row += plan.halo_pitch) {
      for (int column = 0; column < plan.kernel_width; ++column, index += neighbour_stride()) {
        function(index, s_row[column * plan.tile_images]);
      }
    }
  }

  // s_channels <- channels from `channel` on: those of p_halo for the halo and, if p_own is given,
  // those of p_own for the tile's own positions. Zeros outside the map and past the last channel.
  __device__ __forceinline__ void stage(const SampleLayout& layout, const T* p_halo, const T* p_own,
                                        int channel, int vectors) const {
    const int halo_positions = plan.halo_positions();
    const int positions = halo_positions + (p_own ? plan.own_positions() : 0);
    const auto source = [&](int position) { return position < halo_positions ? p_halo : p_own; };
    if (layout.wide) {
      const int vector = threadIdx.x % kStaged;
      const int first = channel + vector * kWidth<T>;
      Channels<T>* s_to = s_channels + vector * plan.plane;
      for (int position = threadIdx.x / kStaged; position < positions && vector < vectors;
           position += blockDim.x / kStaged) {
        const int pixel = s_pixel[position];
        if (pixel < 0) {
          s_to[position] = no_channels<T>();
        } else {
          copy_channels(s_to + position, source(position) + layout.offset(pixel, first));
        }
      }
      finish_copies();
      return;
    }
    for_each_vector(plan.channels_last, vectors, positions, [&](int vector, int position) {
      const int pixel = s_pixel[position];
      const int first = channel + vector * kWidth<T>;
      const int count = pixel < 0 ? 0 : layout.channels - first;
      s_channels[vector * plan.plane + position] = gather_channels(
          source(position) + layout.offset(max(pixel, 0), first), layout.stride(), count);
    });
  }

  // p_out <- channels from `channel` on of the tile's own positions in s_channels.
  __device__ __forceinline__ void store_own(const SampleLayout& layout, T* p_out, int channel,
                                            int vectors) const {
    const int own = plan.halo_positions();
    for_each_vector(plan.channels_last, vectors, plan.own_positions(),
                    [&](int vector, int position) {
                      const int pixel = s_pixel[own + position];
                      if (pixel < 0) return;
                      const int first = channel + vector * kWidth<T>;
                      const Channels<T> stored = s_channels[vector * plan.plane + own + position];
                      T* p = p_out + layout.offset(pixel, first);
                      if (layout.wide) {
                        *reinterpret_cast<Channels<T>*>(p) = stored;
                        return;
                      }
#pragma unroll
                      for (int e = 0; e < kWidth<T>; ++e) {
                        if (e < layout.channels - first) p[e * layout.stride()] = stored.value[e];
                      }
                    });
  }
};

// Fills s_pixel [rows, pitch] with the pixels of `rows` rows and `columns` columns of tile_images
// images, from (first_row, first_column) of images (image_row, first_image) on.
__device__ __forceinline__ void find_pixels(const LocalPlan& plan, int first_row, int image_row,
                                            int first_column, int first_image, int rows,
                                            int columns, int pitch, int* s_pixel) {
  for (int position = threadIdx.x; position < rows * pitch; position += blockDim.x) {
    const int row = first_row + position / pitch;
    const int column = position % pitch / plan.tile_images;
    const int image = first_image + position % pitch % plan.tile_images;
    const int64_t y = static_cast<int64_t>(row) * plan.dilation_height + image_row;
    const int64_t x = static_cast<int64_t>(first_column + column) * plan.dilation_width + image;
    const bool inside = column < columns && image < plan.dilation_width && y >= 0 &&
                        y < plan.height && x >= 0 && x < plan.width;
    s_pixel[position] = inside ? static_cast<int>(y * plan.width + x) : -1;
  }
}

// The tile of this block, with tables ready. Blocks in order: samples, rows of images, tiles of
// rows, tiles of images side by side, tiles of columns.
template <typename T>
__device__ __forceinline__ Tile<T> make_tile(const LocalPlan& plan, int weight_arrays,
                                             unsigned char* shared) {
  unsigned block = blockIdx.x;
  const auto next = [&block](int count) {
    const int index = static_cast<int>(block % count);
    block /= count;
    return index;
  };
  const int first_column = next(plan.column_tiles) * plan.tile_columns;
  const int first_image = next(plan.image_tiles) * plan.tile_images;
  const int first_row = next(plan.row_tiles) * plan.tile_rows;
  const int image_row = next(plan.dilation_height);

  Tile<T> tile{plan, block, reinterpret_cast<Channels<T>*>(shared), nullptr, nullptr};
  tile.s_weights = reinterpret_cast<accumulator_t<T>*>(tile.s_channels + kStaged * plan.plane);
  tile.s_pixel = reinterpret_cast<int*>(tile.s_weights + weight_arrays * tile.weights());
  find_pixels(plan, first_row - plan.kernel_height / 2, image_row,
              first_column - plan.kernel_width / 2, first_image,
              plan.tile_rows + plan.kernel_height - 1, plan.tile_columns + plan.kernel_width - 1,
              plan.halo_pitch, tile.s_pixel);
  find_pixels(plan, first_row, image_row, first_column, first_image, plan.tile_rows,
              plan.tile_columns, plan.own_pitch, tile.s_pixel + plan.halo_positions());
  __syncthreads();
  return tile;
}

}  // namespace attnops::cuda
