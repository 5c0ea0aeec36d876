"""Triton forward of group_attention: inner products of groups, and scaled maps.

Source: Yue et al., Compact Generalized Non-local Network (NeurIPS 2018), eq. (8).

A group of one item is a matrix of `rows` rows of `columns` contiguous elements: rows of BLOCK
elements of a contiguous map, or the group's channels of every pixel of a channels_last one. Sums
are made of partial sums of a fixed split, added in order: no atomics. The backward has no kernels
of its own.
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
SPLIT = 32768  # elements that a program sums, about
UNSPECIALIZED = ["groups", "splits", "rows", "columns", "row_stride", "length", "group_stride"]


@triton.jit(do_not_specialize=UNSPECIALIZED)
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
    split = tl.program_id(0) % splits
    group = (tl.program_id(0) // splits) % groups
    batch = (tl.program_id(0) // (splits * groups)).to(tl.int64)
    row_stride = known_multiple(row_stride, MULTIPLE)
    start = batch * batch_stride + group.to(tl.int64) * known_multiple(group_stride, MULTIPLE)
    share = tl.cdiv(tl.cdiv(rows, splits), ROWS) * ROWS
    acc = tl.zeros([ROWS, COLUMNS], tl.float32)
    factor = 1.0
    if SCALE:
        factor = tl.load(p_factors + batch * groups + group)
    for row in range(split * share, tl.minimum(rows, (split + 1) * share), ROWS):
        b_row = (row + tl.arange(0, ROWS))[:, None]
        for column in range(0, columns, COLUMNS):
            b_column = (column + tl.arange(0, COLUMNS))[None, :]
            b_offset = b_row.to(tl.int64) * row_stride + b_column
            mask = (b_row < rows) & (b_column < columns) & (b_offset < length)
            b_x = tl.load(p_x + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            b_y = tl.load(p_y + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            acc += b_x * b_y
            if SCALE:
                b_out = (b_x * factor).to(p_out.dtype.element_ty)
                tl.store(p_out + start + b_offset, b_out, mask=mask)
    total = tl.sum(tl.sum(acc, axis=1), axis=0)
    tl.store(p_partial + (batch * groups + group) * splits + split, total)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def group_scale_kernel(
    p_x,
    p_factors,
    p_out,
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
    MULTIPLE: tl.constexpr,
):
    """out = factor of the group * x. Pointers and grid as in group_dot_kernel.

    Reads x and writes out once.
    """
    split = tl.program_id(0) % splits
    group = (tl.program_id(0) // splits) % groups
    batch = (tl.program_id(0) // (splits * groups)).to(tl.int64)
    row_stride = known_multiple(row_stride, MULTIPLE)
    start = batch * batch_stride + group.to(tl.int64) * known_multiple(group_stride, MULTIPLE)
    share = tl.cdiv(tl.cdiv(rows, splits), ROWS) * ROWS
    factor = tl.load(p_factors + batch * groups + group)
    for row in range(split * share, tl.minimum(rows, (split + 1) * share), ROWS):
        b_row = (row + tl.arange(0, ROWS))[:, None]
        for column in range(0, columns, COLUMNS):
            b_column = (column + tl.arange(0, COLUMNS))[None, :]
            b_offset = b_row.to(tl.int64) * row_stride + b_column
            mask = (b_row < rows) & (b_column < columns) & (b_offset < length)
            b_x = tl.load(p_x + start + b_offset, mask=mask, other=0.0).to(tl.float32)
            tl.store(p_out + start + b_offset, (b_x * factor).to(p_out.dtype.element_ty), mask=mask)


@dataclass(frozen=True)
class Groups:
    """How the groups of maps like one lie in memory, and the launches for them."""

    batch: int
    sizes: tuple[int, ...]  # groups, splits, rows, columns, strides and length as the kernels want
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
        """[B, groups] float32; with `out`, factors * x goes there."""
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
        return partial.sum(dim=2)

    def scale(self, x: torch.Tensor, factors: torch.Tensor, out: torch.Tensor) -> None:
        launch = scale_launch(self.columns, self.multiple)
        run(group_scale_kernel, self.programs, x, factors, out, *self.sizes, launch=launch)


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
    splits = max(1, triton.cdiv(rows * row_columns, SPLIT))
    sizes = (groups, splits, rows, row_columns, row_stride, length, group_stride, channels * area)
    return Groups(batch, sizes, columns, multiple)


def dot_launch(columns: int, scale: bool, multiple: int) -> Launch:
    constants = {"ROWS": 2048 // columns, "COLUMNS": columns, "SCALE": scale, "MULTIPLE": multiple}
    return Launch(constants, warps=4, registers=255)


def scale_launch(columns: int, multiple: int) -> Launch:
    constants = {"ROWS": 2048 // columns, "COLUMNS": columns, "MULTIPLE": multiple}
    return Launch(constants, warps=4, registers=255)


def forward(
    theta: torch.Tensor, phi: torch.Tensor, g: torch.Tensor, groups: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """out [B, P, H, W] in the layout of theta, affinity [B, groups] float32."""
    layout = groups_of(theta, groups)
    out = empty_map(theta.shape, theta, is_channels_inner(theta))
    with on_device(theta, phi, g) as (theta, phi, g):
        affinity = layout.dot(phi, g)
        layout.scale(theta, affinity, out)
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
        for multiple in FACTORS[dtype]:
            for scale in (False, True):
                pointers = {"p_x": dtype, "p_y": dtype, "p_out": dtype}
                pointers |= {"p_factors": "fp32", "p_partial": "fp32"}
                launch = dot_launch(columns, scale, multiple)
                cases.append(AotCase(group_dot_kernel, pointers, launch))
            pointers = {"p_x": dtype, "p_factors": "fp32", "p_out": dtype}
            cases.append(AotCase(group_scale_kernel, pointers, scale_launch(columns, multiple)))
    return cases
