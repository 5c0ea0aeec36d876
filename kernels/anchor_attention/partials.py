"""Sums over positions in the backward of anchor_attention: partial sums and their reduction."""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import known_multiple
from .tiles import ANCHOR_CLASSES, tile_launch, tile_of, variants

# Programs of the anchor gradients, about: two for each multiprocessor of the largest GPUs. Fixed,
# not asked of the device, so that sums are split the same way everywhere.
PARTIAL_PROGRAMS = 256
MIN_SPLIT = 256  # positions that are worth a partial sum of their own
REDUCED_ROWS = 4
REDUCED_ELEMENTS = 8192  # of a program at once: 32 a thread


@triton.jit(
    do_not_specialize=[
        "positions",
        "channels",
        "rows",
        "first_item",
        "first_step",
        "slab_steps",
        "splits",
        "split_steps",
        "add",
    ]
)
def anchor_gradient_kernel(
    p_map,
    p_weight,
    p_partial,
    positions,
    channels,
    rows,
    first_item,
    first_step,
    slab_steps,
    splits,
    split_steps,
    add,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """partial[split] (+)= sum over the split's positions n of the slab of map[:, n] weight[n, :].

    p_map [B, C, N]: query with ds as weight, or grad with p; contiguous, or with INNER the channel
    index fastest. p_weight [items, slab_steps * POSITIONS, ANCHORS]: positions from first_step *
    POSITIONS on of the batch items first_item, ... of the map.
    p_partial [items, splits, rows, ANCHORS] float32, rows >= C: set, or with `add` added to.
    Grid: items * splits * rows / CHANNELS; one program owns CHANNELS channels of split_steps *
    POSITIONS positions. Reads the map once, the weights once for every CHANNELS channels (L2).
    """
    blocks = rows // CHANNELS
    block = tl.program_id(0) % blocks
    split = (tl.program_id(0) // blocks) % splits
    item = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    b_step = tl.arange(0, POSITIONS)
    b_anchor = tl.arange(0, ANCHORS)
    # Steps instead of positions show that tiles start on multiples of POSITIONS.
    begin = split * split_steps
    end = tl.minimum(begin + split_steps, slab_steps)
    p_map += (first_item + item) * channels * positions
    p_weight += item * slab_steps * (POSITIONS * ANCHORS)
    in_map = (b_channel < channels)[:, None]
    acc = tl.zeros([CHANNELS, ANCHORS], dtype=tl.float32)
    for step in range(begin, end):
        b_position = (first_step + step) * POSITIONS + b_step
        inside = b_position < positions
        if INNER:
            p_tile = p_map + b_position.to(tl.int64)[None, :] * channels + b_channel[:, None]
        else:
            p_tile = p_map + b_channel.to(tl.int64)[:, None] * positions + b_position[None, :]
        b_map = tl.load(p_tile, mask=in_map & inside[None, :], other=0.0)  # [CHANNELS, POSITIONS]
        p_rows = p_weight + (step * POSITIONS + b_step)[:, None] * ANCHORS + b_anchor[None, :]
        b_weight = tl.load(p_rows, mask=inside[:, None], other=0.0)  # [POSITIONS, ANCHORS]
        acc = tl.dot(b_map, b_weight, acc, input_precision=PRECISION)
    p_out = p_partial + ((item * splits + split) * rows + b_channel[:, None]) * ANCHORS
    p_out += b_anchor[None, :]
    if add:
        acc += tl.load(p_out)
    tl.store(p_out, acc)


@triton.jit
def sum_parts(p_parts, stride, count, b_offset, mask, PARTS: tl.constexpr):
    """Sum of `count` float32 tables `stride` elements apart, at the 2-D offsets b_offset.

    The order is the same in every run: PARTS at a time as a tree, then one after the other.
    """
    b_part = tl.arange(0, PARTS)
    p_tile = p_parts + b_part.to(tl.int64)[:, None, None] * stride + b_offset[None, :, :]
    acc = tl.zeros(b_offset.shape, dtype=tl.float32)
    for start in range(0, count, PARTS):
        inside = (start + b_part < count)[:, None, None] & mask[None, :, :]
        acc += tl.sum(tl.load(p_tile, mask=inside, other=0.0), axis=0)
        p_tile += stride.to(tl.int64) * PARTS
    return acc


@triton.jit(do_not_specialize=["anchors", "channels", "rows", "splits", "first_item"])
def reduce_partials_kernel(
    p_partial,
    p_out,
    factor,
    anchors,
    channels,
    rows,
    splits,
    first_item,
    ROWS: tl.constexpr,
    PARTS: tl.constexpr,
    ANCHORS: tl.constexpr,
):
    """out = factor * sum over splits of partial, rounded to out's dtype and freed of padding.

    p_partial [items, splits, rows, ANCHORS] float32: of the batch items first_item, ... of
    p_out [B, channels, anchors].
    Grid: items * ceil(channels / ROWS); one program owns ROWS rows of one batch item.
    Reads the partial sums once: 4 bytes * splits an output element.
    """
    blocks = tl.cdiv(channels, ROWS)
    item = (tl.program_id(0) // blocks).to(tl.int64)
    b_row = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    b_anchor = tl.arange(0, ANCHORS)
    p_partial += item * splits * rows * ANCHORS
    b_offset = b_row[:, None] * ANCHORS + b_anchor[None, :]
    in_rows = (b_row < channels)[:, None]
    acc = sum_parts(p_partial, rows * ANCHORS, splits, b_offset, in_rows, PARTS) * factor
    p_out += ((first_item + item) * channels + b_row[:, None]) * anchors + b_anchor[None, :]
    mask = in_rows & (b_anchor < anchors)[None, :]
    tl.store(p_out, acc.to(p_out.dtype.element_ty), mask=mask)


def anchor_launch(dtype: str, anchors: int, multiple: int, precision: str, inner: bool) -> Launch:
    """The configuration of anchor_gradient_kernel: rows are channels, chunks are of positions."""
    tile = tile_of(dtype, anchors, multiple, precision)
    if dtype != "fp32" and multiple > 1:
        tile = replace(tile, warps=16)  # writing 64 values a thread would take 200 registers
    return tile_launch(tile, tile.chunk, tile.rows, anchors, multiple, precision, inner)


def reduce_launch(anchors: int) -> Launch:
    parts = REDUCED_ELEMENTS // (REDUCED_ROWS * anchors)
    return Launch({"ROWS": REDUCED_ROWS, "PARTS": parts, "ANCHORS": anchors}, warps=8)


class AnchorGradient:
    """dkey or dvalue: partial sums of a group of batch items over slabs, then their reduction."""

    def __init__(
        self, out: torch.Tensor, rows: int, items: int, slab_positions: int, launch: Launch
    ) -> None:
        self.out = out
        self.rows = rows
        self.launch = launch
        self.step = launch.constants["POSITIONS"]
        self.blocks = rows // launch.constants["CHANNELS"]
        wanted = triton.cdiv(PARTIAL_PROGRAMS, self.blocks * items)
        self.splits = max(1, min(wanted, slab_positions // MIN_SPLIT))
        self.split_steps = triton.cdiv(slab_positions, self.splits * self.step)
        anchors = launch.constants["ANCHORS"]
        self.partial = out.new_empty(items, self.splits, rows, anchors, dtype=torch.float32)

    def accumulate(
        self,
        source: torch.Tensor,
        weight: torch.Tensor,
        first_item: int,
        items: int,
        first_position: int,
        slab_positions: int,
    ) -> None:
        """Adds source [B, C, N] times weight [items, slab_positions, ANCHORS] of one slab."""
        run(
            anchor_gradient_kernel,
            items * self.splits * self.blocks,
            source,
            weight,
            self.partial,
            source.shape[2],
            source.shape[1],
            self.rows,
            first_item,
            first_position // self.step,
            slab_positions // self.step,
            self.splits,
            self.split_steps,
            int(first_position > 0),
            launch=self.launch,
        )

    def finish(self, first_item: int, items: int, factor: float) -> None:
        """Writes factor times the sums to the batch items first_item, ... of the output."""
        reduce_partials(self.partial, self.out, first_item, items, factor)


def reduce_partials(
    partial: torch.Tensor, out: torch.Tensor, first_item: int, items: int, factor: float
) -> None:
    """out[first_item + i] = factor * sum of partial[i] [splits, rows, ANCHORS] over splits."""
    _, splits, rows, anchors = partial.shape
    _, channels, count = out.shape
    run(
        reduce_partials_kernel,
        items * triton.cdiv(channels, REDUCED_ROWS),
        partial,
        out,
        factor,
        count,
        channels,
        rows,
        splits,
        first_item,
        launch=reduce_launch(anchors),
    )


def partial_cases() -> list[AotCase]:
    """Every compilation that the sums over positions can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        products = {"p_map": dtype, "p_weight": dtype, "p_partial": "fp32"}
        for variant in variants(dtype):
            cases.append(AotCase(anchor_gradient_kernel, products, anchor_launch(dtype, *variant)))
        partial = {"p_partial": "fp32", "p_out": dtype}
        for padded in ANCHOR_CLASSES:
            launch = reduce_launch(padded)
            cases.append(AotCase(reduce_partials_kernel, partial, launch, {"factor": "fp32"}))
    return cases
