"""Depthwise convolutions of maps in Triton: tiles, sums over taps, gradients of the taps.

A kernel of odd sides is padded with zeros. Weights come tap by tap, `[taps, C]`, so that channels
are contiguous. A convolution is turned (its taps in reverse order) for the gradient of its input.
Neighbouring tiles and taps read the same elements: those come out of the caches.
"""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._layout import is_channels_inner
from ._launch import TRITON_DTYPES, AotCase, Launch, aligned_storage, refuse_tensor, run
from ._multiples import FACTORS, known_factor, known_multiple
from ._tiles import owned_block, tile_offsets

SIZES = ["channels", "height", "width"]
KERNEL = ["kernel_height", "kernel_width"]
SPLIT = {False: 2048, True: 512}  # positions, about, that share a partial sum


class Tile(NamedTuple):
    """A run of pixels of a few channels of a map [channels, height, width]."""

    b_row: tl.tensor  # [POSITIONS]
    b_column: tl.tensor  # [POSITIONS]
    b_channel: tl.tensor  # [CHANNELS]
    b_place: tl.tensor  # [POSITIONS, CHANNELS]: offsets in the map
    mask: tl.tensor  # [POSITIONS, CHANNELS]
    channels: tl.tensor
    height: tl.tensor
    width: tl.tensor


@triton.jit
def tile_at(
    tile, block, item, sizes, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr
):
    """The Tile of a number of a tile and of a block of channels, with the places in all maps.

    sizes: channels, height and width.
    """
    channels, height, width = sizes
    area = height * width
    b_pixel = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    mask = (b_pixel < area)[:, None] & (b_channel < channels)[None, :]
    b_place = item * channels * area + tile_offsets(b_pixel, b_channel, channels, area, INNER)
    return Tile(
        b_pixel // width, b_pixel % width, b_channel, b_place, mask, channels, height, width
    )


@triton.jit
def owned_tile(sizes, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr):
    """The Tile of a program of a grid over whole maps."""
    channels, height, width = sizes
    tiles = tl.cdiv(height * width, POSITIONS)
    blocks = tl.cdiv(channels, CHANNELS)
    tile, block, item = owned_block(tiles, blocks, INNER)
    return tile_at(tile, block, item.to(tl.int64), sizes, POSITIONS, CHANNELS, INNER)


@triton.jit
def load_shifted(p_map, tile, down, across, INNER: tl.constexpr):
    """The elements `down` rows and `across` columns from those of a tile, zero outside the map."""
    b_row = tile.b_row + down
    b_column = tile.b_column + across
    inside = (b_row >= 0) & (b_row < tile.height) & (b_column >= 0) & (b_column < tile.width)
    offset = (down * tile.width + across).to(tl.int64)
    if INNER:
        offset *= tile.channels
    p_tile = p_map + tile.b_place + offset
    return tl.load(p_tile, mask=tile.mask & inside[:, None], other=0.0).to(tl.float32)


@triton.jit
def convolved(p_map, p_taps, tile, kernel_height, kernel_width, turned, INNER: tl.constexpr):
    """sum_ij tap[i, j] * x[y + i - kh // 2, x + j - kw // 2], tap by tap: a float32 tile.

    p_taps [kh * kw, C].
    """
    count = kernel_height * kernel_width
    in_channels = tile.b_channel < tile.channels
    acc = tl.zeros(tile.mask.shape, tl.float32)
    for i in range(count):
        down = i // kernel_width - kernel_height // 2
        across = i % kernel_width - kernel_width // 2
        b_x = load_shifted(p_map, tile, down, across, INNER)
        tap = tl.where(turned != 0, count - 1 - i, i)
        p_tap = p_taps + tap * tile.channels + tile.b_channel
        b_tap = tl.load(p_tap, mask=in_channels, other=0.0)
        acc += b_tap.to(tl.float32)[None, :] * b_x
    return acc


@triton.jit
def load_bias(p_biases, tile):
    """A bias [C], as a row of a tile."""
    in_channels = tile.b_channel < tile.channels
    b_bias = tl.load(p_biases + tile.b_channel, mask=in_channels, other=0.0)
    return b_bias.to(tl.float32)[None, :]


@triton.jit(do_not_specialize=[*SIZES, *KERNEL, "turned", "has_bias"])
def convolve_kernel(
    p_x,
    p_taps,
    p_bias,
    p_out,
    channels,
    height,
    width,
    kernel_height,
    kernel_width,
    turned,
    has_bias,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = convolution of x, plus a bias with `has_bias`.

    p_x, p_out [B, C, H, W], or channels last with INNER; p_taps [kh * kw, C], p_bias [C].
    Grid: B * ceil(C / CHANNELS) * ceil(H * W / POSITIONS); one program owns a run of pixels of a
    few channels of one item. Reads x and writes out once.
    """
    sizes = (known_multiple(channels, MULTIPLE), height, width)
    tile = owned_tile(sizes, POSITIONS, CHANNELS, INNER)
    b_out = convolved(p_x, p_taps, tile, kernel_height, kernel_width, turned, INNER)
    if has_bias != 0:
        b_out += load_bias(p_bias, tile)
    tl.store(p_out + tile.b_place, b_out.to(p_out.dtype.element_ty), mask=tile.mask)


@triton.jit
def sum_positions(b_x):
    """Sums [CHANNELS] of a tile: sums of sums, which err less than one in a row."""
    b_x = tl.reshape(b_x, [b_x.shape[0] // 16, 16, b_x.shape[1]])
    return tl.sum(tl.sum(b_x, axis=1), axis=0)


@triton.jit(do_not_specialize=[*SIZES, *KERNEL, "splits", "split_tiles", "rows", "tap", "bias"])
def tap_sums_kernel(
    p_grad,
    p_x,
    p_sums,
    channels,
    height,
    width,
    kernel_height,
    kernel_width,
    splits,
    split_tiles,
    rows,
    tap,
    bias,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """sums[tap + i] = sum over pixels of a split of grad * (x shifted by tap i); sums[bias]: grad.

    p_grad, p_x [B, C, H, W], or channels last with INNER; p_sums [B * splits, rows, C] float32.
    Grid: B * splits * ceil(C / CHANNELS); one program owns split_tiles runs of POSITIONS pixels of
    a few channels of one item. Reads grad and x once a tap, which a split small enough for the L1
    cache takes from there.
    """
    channels = known_multiple(channels, MULTIPLE)
    sizes = (channels, height, width)
    blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % blocks
    split = (tl.program_id(0) // blocks) % splits
    part = (tl.program_id(0) // blocks).to(tl.int64)
    item = part // splits
    first = split * split_tiles
    last = tl.minimum(first + split_tiles, tl.cdiv(height * width, POSITIONS))
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    p_part = p_sums + part * rows * channels + b_channel
    in_channels = b_channel < channels
    acc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for n in range(first, last):
        tile = tile_at(n, block, item, sizes, POSITIONS, CHANNELS, INNER)
        acc += tl.load(p_grad + tile.b_place, mask=tile.mask, other=0.0).to(tl.float32)
    tl.store(p_part + bias * channels, sum_positions(acc), mask=in_channels)
    for i in range(kernel_height * kernel_width):
        down = i // kernel_width - kernel_height // 2
        across = i % kernel_width - kernel_width // 2
        acc = tl.zeros([POSITIONS, CHANNELS], tl.float32)
        for n in range(first, last):
            tile = tile_at(n, block, item, sizes, POSITIONS, CHANNELS, INNER)
            b_grad = tl.load(p_grad + tile.b_place, mask=tile.mask, other=0.0).to(tl.float32)
            acc += b_grad * load_shifted(p_x, tile, down, across, INNER)
        tl.store(p_part + (tap + i) * channels, sum_positions(acc), mask=in_channels)


def map_launch(inner: bool, multiple: int) -> Launch:
    """The configuration of every kernel that owns tiles of maps."""
    # Along the contiguous axis a program reads at least 64 elements where the map has them.
    positions, channels = (32, 64) if inner else (512, 4)
    constants = {"POSITIONS": positions, "CHANNELS": channels, "INNER": inner}
    return Launch(constants | {"MULTIPLE": multiple}, warps=8, registers=255)


def launch_of(x: torch.Tensor) -> Launch:
    """The configuration for maps like x. Its channels count in the layout only where contiguous."""
    inner = is_channels_inner(x)
    return map_launch(inner, known_factor(x, x.shape[1]) if inner else 1)


def map_programs(x: torch.Tensor, launch: Launch) -> int:
    """Programs that own a tile each of a map like x."""
    batch, channels, height, width = x.shape
    tiles = triton.cdiv(height * width, launch.constants["POSITIONS"])
    return batch * tiles * triton.cdiv(channels, launch.constants["CHANNELS"])


def by_tap(weights: torch.Tensor) -> torch.Tensor:
    """[C, ...] as [taps, C], contiguous."""
    return aligned_storage(weights.flatten(1).t().contiguous())


def convolve(
    x: torch.Tensor,
    out: torch.Tensor,
    taps: torch.Tensor,
    bias: torch.Tensor | None,
    kernel_size: tuple[int, int],
    turned: bool,
    launch: Launch,
) -> None:
    """out = convolution of x with taps [kh * kw, C], plus bias [C] if there is one."""
    run(
        convolve_kernel,
        map_programs(x, launch),
        x,
        taps,
        taps if bias is None else bias,
        out,
        *x.shape[1:],
        *kernel_size,
        int(turned),
        int(bias is not None),
        launch=launch,
    )


class TapSums:
    """Gradients of taps and biases: partial sums of fixed splits, then added in order."""

    def __init__(self, x: torch.Tensor, rows: int, launch: Launch) -> None:
        batch, channels, height, width = x.shape
        self.sizes = (channels, height, width)
        self.launch = launch
        positions = launch.constants["POSITIONS"]
        self.split_tiles = SPLIT[launch.constants["INNER"]] // positions
        self.splits = triton.cdiv(height * width, self.split_tiles * positions)
        self.parts = x.new_empty((batch * self.splits, rows, channels), dtype=torch.float32)

    def add(
        self,
        grad: torch.Tensor,
        x: torch.Tensor,
        kernel_size: tuple[int, int],
        tap: int,
        bias: int,
    ) -> None:
        """Sums of a convolution of x: rows tap, tap + 1, ... for its taps, `bias` for its bias."""
        parts, rows, channels = self.parts.shape
        run(
            tap_sums_kernel,
            parts * triton.cdiv(channels, self.launch.constants["CHANNELS"]),
            grad,
            x,
            self.parts,
            *self.sizes,
            *kernel_size,
            self.splits,
            self.split_tiles,
            rows,
            tap,
            bias,
            launch=self.launch,
        )

    def totals(self, dtype: torch.dtype) -> torch.Tensor:
        """[C, rows], contiguous."""
        return self.parts.sum(dim=0, dtype=torch.float64).t().to(dtype).contiguous()


def refuse_map(x: torch.Tensor) -> str | None:
    """The reason why these kernels cannot run on maps like x, None if they can."""
    batch, channels, height, width = x.shape
    if height * width >= 2**31 - 2**12:
        return "triton: maps must have fewer than 2**31 pixels"
    if batch * channels * (1 + height * width // 32) >= 2**31:
        return "triton: the map is too large for one grid"
    return refuse_tensor(x)


def layouts(dtype: str) -> list[Launch]:
    """The configurations for maps of a dtype."""
    return [map_launch(False, 1), *(map_launch(True, factor) for factor in FACTORS[dtype])]


def aot_cases() -> list[AotCase]:
    """Every compilation of these kernels: maps in the dtype of the op or float32 scratch."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        for launch, (first, second) in product(layouts(dtype), product((dtype, "fp32"), repeat=2)):
            pointers = {"p_grad": first, "p_x": second, "p_sums": "fp32"}
            cases.append(AotCase(tap_sums_kernel, pointers, launch))
            pointers = {"p_x": first, "p_taps": dtype, "p_bias": dtype, "p_out": second}
            if dtype in (first, second):  # scratch is on one side at most
                cases.append(AotCase(convolve_kernel, pointers, launch))
    return [case for i, case in enumerate(cases) if case not in cases[:i]]
