"""Triton forward of group_attention: inner products of groups, and scaled maps.

Source: Yue et al., Compact Generalized Non-local Network (NeurIPS 2018), eq. (8).

A group of one item is a matrix of `rows` rows of `columns` contiguous elements: rows of BLOCK
elements of a contiguous map, or the group's channels of every pixel of a channels_last one. Sums
are made of partial sums of a fixed split, which the kernel that needs them adds in order: no
atomics. The backward has no kernels of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import FACTORS, known_factor, known_multiple

BLOCK = 1024  # elements of a row of a contiguous group
TILE = 2048  # elements that a program takes at once
SPLIT = 4096  # elements that a program owns, about, in groups of at most SPLIT * SPLITS elements
SPLITS = tl.constexpr(256)  # programs at most that share a group
SIZES = [
    "groups",
    "splits",
    "rows",
    "columns",
    "row_stride",
    "length",
    "group_stride",
    "batch_stride",
]


@triton.jit
def owned_rows(sizes, ROWS: tl.constexpr, MULTIPLE: tl.constexpr):
    """What a program owns: group of an item (number and first element), split, rows from - to."""
    groups, splits, rows, _, _, _, group_stride, batch_stride = sizes
    split = tl.program_id(0) % splits
    member = tl.program_id(0) // splits
    group = (member % groups).to(tl.int64)
    batch = (member // groups).to(tl.int64)
    start = batch * known_multiple(batch_stride, MULTIPLE)
    start += group * known_multiple(group_stride, MULTIPLE)
    share = tl.cdiv(tl.cdiv(rows, splits), ROWS) * ROWS
    return member, start, split, split * share, tl.minimum(rows, (split + 1) * share)


@triton.jit
def tile_of_group(row, column, sizes, ROWS: tl.constexpr, COLUMNS: tl.constexpr, MULTIPLE):
    """Offsets [ROWS, COLUMNS] within a group, and which of them there are."""
    _, _, rows, columns, row_stride, length, _, _ = sizes
    b_row = (row + tl.arange(0, ROWS))[:, None]
    b_column = (column + tl.arange(0, COLUMNS))[None, :]
    b_offset = b_row * known_multiple(row_stride, MULTIPLE) + b_column
    mask = (b_row < rows) & (b_column < known_multiple(columns, MULTIPLE))
    return b_offset, mask & (b_offset < known_multiple(length, MULTIPLE))


@triton.jit(do_not_specialize=SIZES)
def group_dot_kernel(
    p_x,
    p_y,
    p_factors,
    p_out,
    p_partial,
    groups,
    splits,
    rows,
    columns,
    row_stride,
    length,
    group_stride,
    batch_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SCALE: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """partial = sum of x * y over a split of a group; with SCALE, out = factor * x on the way.

    p_x, p_y, p_out: maps, element (r, c) of a group at r * row_stride + c, below `length`;
    p_factors [B, groups] float32, p_partial [B, groups, splits] float32.
    Grid: B * groups * splits; one program owns a run of rows of one group of one item.
    Reads x and y once; with SCALE writes out once.
    """
    sizes = (groups, splits, rows, columns, row_stride, length, group_stride, batch_stride)
    member, start, split, first, last = owned_rows(sizes, ROWS, MULTIPLE)
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    factor = 1.0
    if SCALE:
        factor = tl.load(p_factors + member)
    for row in range(first, last, ROWS):
        for column in range(0, columns, COLUMNS):
            b_offset, mask = tile_of_group(row, column, sizes, ROWS, COLUMNS, MULTIPLE)
            b_x = tl.load(p_x + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            b_y = tl.load(p_y + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            acc += b_x * b_y
            if SCALE:
                b_out = (b_x * factor).to(p_out.dtype.element_ty)
                tl.store(p_out + start + b_offset, b_out, mask=mask)
    total = tl.sum(tl.sum(acc, axis=1), axis=0)
    tl.store(p_partial + member * splits + split, total)


@triton.jit(do_not_specialize=SIZES)
def group_scale_kernel(
    p_x,
    p_y,
    p_partial,
    p_sums,
    p_out_x,
    p_out_y,
    groups,
    splits,
    rows,
    columns,
    row_stride,
    length,
    group_stride,
    batch_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PAIR: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out_x = sum of the group's partial sums * x; with PAIR the same of y.

    Maps, p_partial and grid as in group_dot_kernel; p_sums [B, groups] float32: the sums.
    Reads each map and writes each out once, and all of a group's partial sums in every program.
    """
    sizes = (groups, splits, rows, columns, row_stride, length, group_stride, batch_stride)
    member, start, split, first, last = owned_rows(sizes, ROWS, MULTIPLE)
    b_split = tl.arange(0, SPLITS)
    b_partial = tl.load(p_partial + member * splits + b_split, mask=b_split < splits, other=0.0)
    factor = tl.sum(b_partial, axis=0)
    if split == 0:
        tl.store(p_sums + member, factor)
    for row in range(first, last, ROWS):
        for column in range(0, columns, COLUMNS):
            b_offset, mask = tile_of_group(row, column, sizes, ROWS, COLUMNS, MULTIPLE)
            b_x = tl.load(p_x + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            if PAIR:
                b_y = tl.load(p_y + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            b_out = (b_x * factor).to(p_out_x.dtype.element_ty)
            tl.store(p_out_x + start + b_offset, b_out, mask=mask)
            if PAIR:
                b_out = (b_y * factor).to(p_out_y.dtype.element_ty)
                tl.store(p_out_y + start + b_offset, b_out, mask=mask)


@dataclass(frozen=True)
class Groups:
    """How the groups of maps like one lie in memory, and the launches for them."""

    batch: int
    sizes: tuple[int, ...]  # SIZES, as the kernels want them
    columns: int  # of a tile
    multiple: int

    @property
    def programs(self) -> int:
        return self.batch * self.sizes[0] * self.sizes[1]

    def dot(
        self,
        x: torch.Tensor,
        y: torch.Tensor,
        factors: torch.Tensor | None = None,
        out: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Partial sums [B, groups, splits] float32; with `out`, factors * x goes there."""
        partial = x.new_empty((self.batch, *self.sizes[:2]), dtype=torch.float32)
        scale = out is not None
        run(
            group_dot_kernel,
            self.programs,
            x,
            y,
            factors if scale else partial,
            out if scale else x,
            partial,
            *self.sizes,
            launch=dot_launch(self.columns, scale, self.multiple),
        )
        return partial

    def scale(self, partial: torch.Tensor, *maps: torch.Tensor) -> torch.Tensor:
        """The sums [B, groups]; a map times them, or a pair of maps, goes to the second half."""
        sums = partial.new_empty(partial.shape[:2])
        half = len(maps) // 2
        run(
            group_scale_kernel,
            self.programs,
            maps[0],
            maps[half - 1],
            partial,
            sums,
            maps[half],
            maps[-1],
            *self.sizes,
            launch=scale_launch(self.columns, half == 2, self.multiple),
        )
        return sums


def groups_of(x: torch.Tensor, groups: int) -> Groups:
    batch, channels, height, width = x.shape
    area, members = height * width, channels // groups
    if is_channels_inner(x):
        columns = min(128, max(16, triton.next_power_of_2(members)))
        rows, row_stride, group_stride = area, channels, members
        length = (area - 1) * channels + members
        row_columns = members
        multiple = known_factor(x, channels, members)
    else:
        columns = row_columns = row_stride = BLOCK
        length = group_stride = members * area
        rows = triton.cdiv(length, BLOCK)
        multiple = known_factor(x, group_stride)
    splits = min(SPLITS.value, max(1, triton.cdiv(rows * row_columns, SPLIT)))
    sizes = (groups, splits, rows, row_columns, row_stride, length, group_stride, channels * area)
    return Groups(batch, sizes, columns, multiple)


def dot_launch(columns: int, scale: bool, multiple: int) -> Launch:
    constants = {"ROWS": TILE // columns, "COLUMNS": columns, "SCALE": scale, "MULTIPLE": multiple}
    return Launch(constants, warps=4, registers=255)


def scale_launch(columns: int, pair: bool, multiple: int) -> Launch:
    constants = {"ROWS": TILE // columns, "COLUMNS": columns, "PAIR": pair, "MULTIPLE": multiple}
    return Launch(constants, warps=4, registers=255)


def forward(
    theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, P, H, W] in the layout of theta, affinity [B, groups] float32."""
    layout = groups_of(theta, groups)
    out = empty_map(theta.shape, theta, is_channels_inner(theta))
    with on_device(theta, phi, g) as (theta, phi, g):
        affinity = layout.scale(layout.dot(phi, g), theta, out)
    return out, affinity


def refuse(theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor, groups: int) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if theta.numel() >= 2**31 - 2**20:
        return "triton: maps must have fewer than 2**31 elements"
    return refuse_tensor(theta)


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` and `backward` can ask for."""
    cases = []
    for dtype, columns in product(TRITON_DTYPES.values(), (16, 32, 64, 128, BLOCK)):
        for multiple, flag in product(FACTORS[dtype], (False, True)):
            pointers = dict.fromkeys(("p_x", "p_y", "p_out"), dtype)
            pointers |= {"p_factors": "fp32", "p_partial": "fp32"}
            launch = dot_launch(columns, flag, multiple)
            cases.append(AotCase(group_dot_kernel, pointers, launch))
            pointers = dict.fromkeys(("p_x", "p_y", "p_out_x", "p_out_y"), dtype)
            pointers |= {"p_partial": "fp32", "p_sums": "fp32"}
            launch = scale_launch(columns, flag, multiple)
            cases.append(AotCase(group_scale_kernel, pointers, launch))
    return cases
