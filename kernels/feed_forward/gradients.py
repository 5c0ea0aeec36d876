"""What the kernels of feed_forward's backward share: rows of tiles, partial sums, their totals.

Gradients of weights and biases are sums over all positions: every split of the tiles leaves one row
of them, and the rows are added in order.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .._launch import AotCase, Launch, run
from .tiles import COLUMNS, ROWS, load_cells


class Offsets(NamedTuple):
    """Where the sums of a split begin in its row, for C, D and K channels; `length`: of the row."""

    expand: int  # [D, C]
    contract: int  # [K, D]
    taps: int  # [9, D]
    expand_bias: int  # [D]
    depthwise_bias: int  # [D]
    contract_bias: int  # [K]
    length: int


@triton.jit
def offsets_of(channels, hidden, outputs):
    """The Offsets of rows of sums."""
    contract = hidden * channels
    taps = contract + hidden * outputs
    expand_bias = taps + 9 * hidden
    depthwise_bias = expand_bias + hidden
    contract_bias = depthwise_bias + hidden
    length = contract_bias + outputs
    return Offsets(0, contract, taps, expand_bias, depthwise_bias, contract_bias, length)


def row_length(channels: int, hidden: int, outputs: int) -> int:
    return hidden * (channels + outputs + 11) + outputs


@triton.jit
def split_rows(b_tile, HIDDEN: tl.constexpr):
    """The four rows [COLUMNS, HIDDEN] of [OWN, HIDDEN]: what join_rows joins."""
    b_rows = tl.permute(tl.reshape(b_tile, [2, 2, COLUMNS, HIDDEN]), (2, 3, 1, 0))
    b_first, b_last = tl.split(b_rows)
    b_0, b_1 = tl.split(b_first)
    b_2, b_3 = tl.split(b_last)
    return b_0, b_1, b_2, b_3


@triton.jit
def add_tap_sums(p_block, rows, sums, HIDDEN: tl.constexpr):
    """Adds to nine sums [COLUMNS, HIDDEN] a tile's dz times the hidden map at each tap's distance.

    p_block [CELLS, HIDDEN]: the hidden map of the halo; rows: of dz.
    """
    for row in tl.static_range(ROWS + 2):
        b_left = load_cells(p_block, row, 0, HIDDEN)
        b_middle = load_cells(p_block, row, 1, HIDDEN)
        b_right = load_cells(p_block, row, 2, HIDDEN)
        beside = (b_left, b_middle, b_right)
        added = ()
        for tap in tl.static_range(9):
            if row >= tap // 3 and row < tap // 3 + ROWS:
                added += (tl.fma(rows[row - tap // 3], beside[tap % 3], sums[tap]),)
            else:
                added += (sums[tap],)
        sums = added
    return sums


@triton.jit
def load_row(p_dz, tile, row, across, b_channel, hidden):
    """dz [COLUMNS, HIDDEN] of a row, from a column on: both relative to the tile's first."""
    y = tile.top + row
    b_x = tile.left + across + tl.arange(0, COLUMNS)
    last = tl.where((y >= 0) & (y < tile.height), tile.width, 0)
    mask = ((b_x >= 0) & (b_x < last))[:, None] & (b_channel < hidden)[None, :]
    p_row = p_dz + ((y * tile.width + b_x)[:, None] * hidden + b_channel[None, :])
    return tl.load(p_row, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def hidden_gradient(p_dz, tile, taps, b_channel, hidden):
    """The rows of a tile of the gradient of the hidden map: the turned convolution of dz.

    p_dz [H, W, D] of the tile's item.
    """
    b_nothing = tl.zeros([COLUMNS, b_channel.shape[0]], tl.float32)
    b_above, b_here = b_nothing, b_nothing
    rows = ()
    for row in tl.static_range(ROWS + 2):
        b_left = load_row(p_dz, tile, row - 1, -1, b_channel, hidden)
        b_middle = load_row(p_dz, tile, row - 1, 0, b_channel, hidden)
        b_right = load_row(p_dz, tile, row - 1, 1, b_channel, hidden)
        if row >= 2:
            rows += (b_above + taps[2] * b_left + taps[1] * b_middle + taps[0] * b_right,)
        b_above = b_here + taps[5] * b_left + taps[4] * b_middle + taps[3] * b_right
        b_here = taps[8] * b_left + taps[7] * b_middle + taps[6] * b_right
    return rows


@triton.jit
def store_sum(p_sums, b_sum, b_channel, channels):
    """Stores the sums of the columns of b_sum [positions, HIDDEN]."""
    tl.store(p_sums + b_channel, tl.sum(b_sum, axis=0), mask=b_channel < channels)


@triton.jit
def store_matrix(p_matrix, b_matrix, b_row, b_column, rows, columns):
    """Stores [b_row, b_column] in a matrix [rows, columns]."""
    mask = (b_row < rows)[:, None] & (b_column < columns)[None, :]
    tl.store(p_matrix + (b_row[:, None] * columns + b_column[None, :]), b_matrix, mask=mask)


@triton.jit
def store_total(p_out, b_place, b_total, b_index, begin, count):
    """Stores those of a row's totals that begin at `begin`, at b_place behind it."""
    mask = (b_index >= begin) & (b_index < begin + count)
    tl.store(p_out + b_place, b_total, mask=mask)


@triton.jit(do_not_specialize=["channels", "hidden", "outputs", "splits", "biased"])
def feed_forward_totals_kernel(
    p_parts,
    p_expand,
    p_taps,
    p_contract,
    p_expand_bias,
    p_depthwise_bias,
    p_contract_bias,
    channels,
    hidden,
    outputs,
    splits,
    biased,
    BLOCK: tl.constexpr,
):
    """Gradients of all parameters: sums over the splits of the rows of p_parts, see Offsets.

    p_parts [splits, length] float32; p_expand [D, C], p_taps [D, 1, 3, 3], p_contract [K, D];
    biases [D], [D], [K], of which bits of `biased` say whether they are there.
    Grid: ceil(length / BLOCK); one program owns BLOCK sums. Reads all parts once.
    """
    at = offsets_of(channels, hidden, outputs)
    b_index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    p_part = p_parts
    for _split in range(splits):
        b_sum += tl.load(p_part + b_index, mask=b_index < at.length, other=0.0)
        p_part += at.length
    b_total = b_sum.to(p_expand.dtype.element_ty)
    store_total(p_expand, b_index, b_total, b_index, 0, hidden * channels)
    b_place = b_index - at.contract
    store_total(p_contract, b_place, b_total, b_index, at.contract, hidden * outputs)
    b_place = b_index - at.taps
    b_place = b_place % hidden * 9 + b_place // hidden
    store_total(p_taps, b_place, b_total, b_index, at.taps, 9 * hidden)
    there = biased & 1
    b_place = b_index - at.expand_bias
    store_total(p_expand_bias, b_place, b_total, b_index, at.expand_bias, hidden * there)
    there = biased >> 1 & 1
    b_place = b_index - at.depthwise_bias
    store_total(p_depthwise_bias, b_place, b_total, b_index, at.depthwise_bias, hidden * there)
    there = biased >> 2
    b_place = b_index - at.contract_bias
    store_total(p_contract_bias, b_place, b_total, b_index, at.contract_bias, outputs * there)


TOTALS = Launch({"BLOCK": 256}, warps=8, registers=255)


def totals(
    parts: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    sizes: tuple[int, int, int],
    biased: int,
) -> None:
    """Adds the rows of parts up into the gradients of the weights and biases."""
    programs = triton.cdiv(parts.shape[1], TOTALS.constants["BLOCK"])
    arguments = (parts, *weights, *biases, *sizes, parts.shape[0], biased)
    run(feed_forward_totals_kernel, programs, *arguments, launch=TOTALS)


def aot_cases() -> list[AotCase]:
    """Every compilation of feed_forward_totals_kernel."""
    names = ("expand", "taps", "contract", "expand_bias", "depthwise_bias", "contract_bias")
    return [
        AotCase(
            feed_forward_totals_kernel,
            {f"p_{name}": dtype for name in names} | {"p_parts": "fp32"},
            TOTALS,
        )
        for dtype in ("fp16", "bf16")
    ]
