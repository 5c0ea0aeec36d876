"""strip_conv of any number of strips and any odd kernels, tap by tap, in Triton.

Source: Guo et al., SegNeXt (NeurIPS 2022), eq. (1).

Forward, in three steps: the local convolution a, the horizontal convolutions of a of up to three
strips, and their vertical convolutions with the sum. More strips take the last two steps again for
every further three. Backward, with h_s = horizontal_s(a) + bias: dh_s = vertical_s^T(grad),
da = grad + sum_s horizontal_s^T(dh_s), dx = local^T(da), and gradients of taps and biases are sums
over pixels of grad with h_s, dh_s with a, and da with x: partial sums, added in order. a, da, h_s
and dh_s are scratch maps in float32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .. import _depthwise as depthwise
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, round_up, run
from .._multiples import known_multiple

GROUP = tl.constexpr(3)  # strips that a kernel takes at once; SegNeXt has three
ALIGNED = tl.constexpr(4)  # scratch maps start on multiples of so many floats: of 16 bytes
STRIPS = [
    *depthwise.SIZES,
    "batches",
    "tap",
    "bias",
    "rows_0",
    "columns_0",
    "rows_1",
    "columns_1",
    "rows_2",
    "columns_2",
    "backward",
]


@triton.jit
def map_stride(batches, sizes):
    """Elements from one scratch map of a group to the next."""
    channels, height, width = sizes
    elements = tl.cast(batches, tl.int64) * channels * height * width
    return tl.cdiv(elements, ALIGNED) * ALIGNED


@triton.jit(do_not_specialize=STRIPS)
def spread_strips_kernel(
    p_x,
    p_taps,
    p_biases,
    p_maps,
    batches,
    channels,
    height,
    width,
    tap,
    bias,
    rows_0,
    columns_0,
    rows_1,
    columns_1,
    rows_2,
    columns_2,
    backward,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """maps[s] = horizontal_s(x) + bias; with `backward` maps[s] = vertical_s^T(x).

    p_x [B, C, H, W], p_maps [3, B, C, H, W] float32 (map_stride elements apart), or channels last
    with INNER. p_taps [T, C]: from `tap` on, rows_0 taps of the first strip's row and columns_0 of
    its column, then those of the others, of which a length 0 says that there is none.
    p_biases [., C]: from `bias` on, biases of rows and columns in turn.
    Grid: B * ceil(C / CHANNELS) * ceil(H * W / POSITIONS); one program owns a run of pixels of a
    few channels of one item in every map. Reads x once (further taps out of the caches), writes the
    maps once.
    """
    sizes = (known_multiple(channels, MULTIPLE), height, width)
    lengths = (rows_0, columns_0, rows_1, columns_1, rows_2, columns_2)
    tile = depthwise.owned_tile(sizes, POSITIONS, CHANNELS, INNER)
    stride = map_stride(batches, sizes)
    for s in tl.static_range(GROUP):
        rows, columns = lengths[2 * s], lengths[2 * s + 1]
        if rows > 0:
            b_map = depthwise.convolved(
                p_x,
                p_taps + (tap + tl.where(backward != 0, rows, 0)) * tile.channels,
                tile,
                tl.where(backward != 0, columns, 1),
                tl.where(backward != 0, 1, rows),
                backward,
                INNER,
            )
            if backward == 0:
                b_map += depthwise.load_bias(p_biases + (bias + 2 * s) * tile.channels, tile)
            tl.store(p_maps + s * stride + tile.b_place, b_map, mask=tile.mask)
        tap += rows + columns


@triton.jit(do_not_specialize=STRIPS)
def gather_strips_kernel(
    p_base,
    p_maps,
    p_taps,
    p_biases,
    p_out,
    batches,
    channels,
    height,
    width,
    tap,
    bias,
    rows_0,
    columns_0,
    rows_1,
    columns_1,
    rows_2,
    columns_2,
    backward,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = base + sum_s (vertical_s(maps[s]) + bias); with `backward` base + sum_s
    horizontal_s^T(maps[s]).

    p_base, p_out [B, C, H, W]; p_maps, taps, biases and grid as in spread_strips_kernel.
    Reads base and the maps once (further taps out of the caches), writes out once.
    """
    sizes = (known_multiple(channels, MULTIPLE), height, width)
    lengths = (rows_0, columns_0, rows_1, columns_1, rows_2, columns_2)
    tile = depthwise.owned_tile(sizes, POSITIONS, CHANNELS, INNER)
    stride = map_stride(batches, sizes)
    b_out = tl.load(p_base + tile.b_place, mask=tile.mask, other=0.0).to(tl.float32)
    for s in tl.static_range(GROUP):
        rows, columns = lengths[2 * s], lengths[2 * s + 1]
        if rows > 0:
            b_out += depthwise.convolved(
                p_maps + s * stride,
                p_taps + (tap + tl.where(backward != 0, 0, rows)) * tile.channels,
                tile,
                tl.where(backward != 0, 1, columns),
                tl.where(backward != 0, rows, 1),
                backward,
                INNER,
            )
            if backward == 0:
                b_out += depthwise.load_bias(p_biases + (bias + 2 * s + 1) * tile.channels, tile)
        tap += rows + columns
    tl.store(p_out + tile.b_place, b_out.to(p_out.dtype.element_ty), mask=tile.mask)


@dataclass(frozen=True)
class Strips:
    """Up to three strips, and where their parameters begin."""

    rows: list[int]
    columns: list[int]
    tap: int
    bias: int

    def sizes(self, x: torch.Tensor, backward: bool) -> tuple[int, ...]:
        """The integers that the kernels want, for maps like x."""
        pairs = [n for pair in zip(self.rows, self.columns, strict=True) for n in pair]
        missing = [0] * (2 * GROUP.value - len(pairs))
        return *x.shape, self.tap, self.bias, *pairs, *missing, int(backward)

    def spread(
        self,
        x: torch.Tensor,
        taps: torch.Tensor,
        biases: torch.Tensor,
        backward: bool,
        launch: Launch,
    ) -> torch.Tensor:
        """The map of every strip, in float32: [strips, elements of a map, rounded up]."""
        stride = round_up(x.numel(), ALIGNED.value)
        maps = x.new_empty((len(self.rows), stride), dtype=torch.float32)
        run(
            spread_strips_kernel,
            depthwise.map_programs(x, launch),
            x,
            taps,
            biases,
            maps,
            *self.sizes(x, backward),
            launch=launch,
        )
        return maps

    def gather(
        self,
        base: torch.Tensor,
        maps: torch.Tensor,
        taps: torch.Tensor,
        biases: torch.Tensor,
        out: torch.Tensor,
        backward: bool,
        launch: Launch,
    ) -> None:
        """out = base and what the maps of `spread` add to it."""
        run(
            gather_strips_kernel,
            depthwise.map_programs(base, launch),
            base,
            maps,
            taps,
            biases,
            out,
            *self.sizes(base, backward),
            launch=launch,
        )


def groups_of(kernel_size: list[int], rows: list[int], columns: list[int]) -> list[Strips]:
    """The strips, three at a time."""
    groups = []
    tap, bias = kernel_size[0] * kernel_size[1], 1
    for i in range(0, len(rows), GROUP.value):
        strips = Strips(rows[i : i + GROUP.value], columns[i : i + GROUP.value], tap, bias)
        groups.append(strips)
        tap += sum(strips.rows) + sum(strips.columns)
        bias += 2 * len(strips.rows)
    return groups


def packed(
    weights: list[torch.Tensor], biases: list[torch.Tensor], biased: list[int]
) -> tuple[torch.Tensor, torch.Tensor, list[int], list[int], list[int]]:
    """taps [C, T], biases [C, 1 + 2 * strips], the local kernel's sides, rows and columns."""
    taps = torch.cat([weight.flatten(1) for weight in weights], dim=1)
    found = dict(zip(biased, biases, strict=True))
    zero = taps.new_zeros(()).expand(taps.shape[0])
    shifts = torch.stack([found.get(i, zero) for i in range(len(weights))], dim=1)
    rows, columns = [w.shape[3] for w in weights[1::2]], [w.shape[2] for w in weights[2::2]]
    return taps, shifts, list(weights[0].shape[2:]), rows, columns


def forward(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor]:
    """out [B, C, H, W] in the layout of x."""
    taps, biases, kernel_size, rows, columns = packed(weights, biases, biased)
    launch = depthwise.launch_of(x)
    groups = groups_of(kernel_size, rows, columns)
    out = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(x) as (x,):
        taps, biases = depthwise.by_tap(taps), depthwise.by_tap(biases)
        local = torch.empty_like(x, dtype=torch.float32) if groups else out
        depthwise.convolve(x, local, taps, biases, kernel_size, False, launch)
        base = local
        for strips in groups:
            target = out if strips is groups[-1] else torch.empty_like(local)
            maps = strips.spread(local, taps, biases, False, launch)
            strips.gather(base, maps, taps, biases, target, False, launch)
            base = target
    return (out,)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    given: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """dx like x, and the gradients of weights and biases."""
    taps, biases, *sides = packed(weights, given, biased)
    launch = depthwise.launch_of(x)
    kernel_size, *_ = sides  # and the lengths of rows and of columns
    groups = groups_of(*sides)
    count, bias_count = taps.shape[1], biases.shape[1]
    dx = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(grad, x) as (grad, x):
        taps, biases = depthwise.by_tap(taps), depthwise.by_tap(biases)
        sums = depthwise.TapSums(x, count + bias_count, launch)
        dlocal = grad
        if groups:
            local = torch.empty_like(x, dtype=torch.float32)
            depthwise.convolve(x, local, taps, biases, kernel_size, False, launch)
        for strips in groups:
            maps = strips.spread(local, taps, biases, False, launch)
            dmaps = strips.spread(grad, taps, biases, True, launch)
            base, dlocal = dlocal, torch.empty_like(local)
            strips.gather(base, dmaps, taps, biases, dlocal, True, launch)
            tap, bias = strips.tap, count + strips.bias
            for i, (row, column) in enumerate(zip(strips.rows, strips.columns, strict=True)):
                sums.add(dmaps[i], local, (1, row), tap, bias)
                sums.add(grad, maps[i], (column, 1), tap + row, bias + 1)
                tap, bias = tap + row + column, bias + 2
        sums.add(dlocal, x, kernel_size, 0, count)
        depthwise.convolve(dlocal, dx, taps, None, kernel_size, True, launch)
        totals = sums.totals(x.dtype)
    dweights = [torch.empty_like(weight) for weight in weights]
    parts = totals[:, :count].split([w.shape[2] * w.shape[3] for w in weights], dim=1)
    for to, part in zip(dweights, parts, strict=True):
        to.copy_(part.reshape(to.shape))
    return dx, dweights, [totals[:, count + i].contiguous() for i in biased]


def aot_cases() -> list[AotCase]:
    """Every compilation of the kernels of strips, forward and backward."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        parameters = {"p_taps": dtype, "p_biases": dtype, "p_maps": "fp32"}
        for launch in depthwise.layouts(dtype):
            for source in {"fp32", dtype}:
                cases.append(AotCase(spread_strips_kernel, parameters | {"p_x": source}, launch))
            for base, out in {("fp32", "fp32"), ("fp32", dtype), (dtype, "fp32")}:
                pointers = parameters | {"p_base": base, "p_out": out}
                cases.append(AotCase(gather_strips_kernel, pointers, launch))
    return cases
