"""Sums over positions in the backward of anchor_attention: partial sums and their reduction."""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import known_multiple
from .tiles import ANCHOR_CLASSES, Variant, gradient_tile_of, variants

# Programs of the anchor gradients, about: two for each multiprocessor of the largest GPUs. Fixed,
# not asked of the device, so that sums are split the same way everywhere.
PARTIAL_PROGRAMS = 256
MIN_SPLIT = 256  # positions that are worth a partial sum of their own
REDUCED_ELEMENTS = 512  # of a program: 4 a thread
UNROLLED = 4  # partial sums that a thread has on their way at once


@triton.jit(
    do_not_specialize=[
        "positions",
        "key_channels",
        "value_channels",
        "key_blocks",
        "blocks",
        "first_item",
        "first_step",
        "slab_steps",
        "splits",
        "split_steps",
        "add",
    ]
)
def anchor_gradient_kernel(
    p_query,
    p_dscore,
    p_grad,
    p_weight,
    p_partial,
    positions,
    key_channels,
    value_channels,
    key_blocks,
    blocks,
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
    """partial[split] (+)= sum over the split's positions n of query[:, n] ds[n, :], grad[:, n] p[n, :].

    p_query [B, Ck, N], p_grad [B, Cv, N]: contiguous, or with INNER the channel index fastest.
    p_dscore, p_weight [items, slab_steps * POSITIONS, ANCHORS]: positions from first_step *
    POSITIONS on of the batch items first_item, ... of the maps.
    p_partial [items, splits, blocks * CHANNELS, ANCHORS] float32, key_blocks blocks for the key
    before those for the value: set, or with `add` added to.
    Grid: items * splits * blocks; one program owns CHANNELS channels of split_steps * POSITIONS
    positions. Reads the maps once, the weights once for every CHANNELS channels (L2).
    """
    block = tl.program_id(0) % blocks
    split = (tl.program_id(0) // blocks) % splits
    item = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    if block < key_blocks:
        channels = key_channels
        first_channel = block * CHANNELS
        p_map = p_query
        p_rows = p_dscore
    else:
        channels = value_channels
        first_channel = (block - key_blocks) * CHANNELS
        p_map = p_grad
        p_rows = p_weight
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        positions = known_multiple(positions, MULTIPLE)
    b_channel = first_channel + tl.arange(0, CHANNELS)
    b_step = tl.arange(0, POSITIONS)
    b_anchor = tl.arange(0, ANCHORS)
    # Steps instead of positions show that tiles start on multiples of POSITIONS.
    begin = split * split_steps
    end = tl.minimum(begin + split_steps, slab_steps)
    p_map += (first_item + item) * channels * positions
    p_rows += item * slab_steps * (POSITIONS * ANCHORS)
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
        p_tile_rows = p_rows + (step * POSITIONS + b_step)[:, None] * ANCHORS + b_anchor[None, :]
        b_rows = tl.load(p_tile_rows, mask=inside[:, None], other=0.0)  # [POSITIONS, ANCHORS]
        acc = tl.dot(b_map, b_rows, acc, input_precision=PRECISION)
    b_row = block * CHANNELS + tl.arange(0, CHANNELS)
    p_out = p_partial + (item * splits + split) * blocks * (CHANNELS * ANCHORS)
    p_out += b_row[:, None] * ANCHORS + b_anchor[None, :]
    if add:
        acc += tl.load(p_out)
    tl.store(p_out, acc)


@triton.jit
def sum_parts(p_tile, stride, count, mask, UNROLL: tl.constexpr):
    """Sum of `count` float32 tables `stride` elements apart, one after the other."""
    acc = tl.zeros(mask.shape, dtype=tl.float32)
    for _ in tl.range(0, count, loop_unroll_factor=UNROLL):
        acc += tl.load(p_tile, mask=mask, other=0.0)
        p_tile += stride
    return acc


@triton.jit(
    do_not_specialize=[
        "anchors",
        "key_channels",
        "value_channels",
        "key_rows",
        "rows",
        "splits",
        "bias_tiles",
        "bias_slices",
        "first_item",
    ]
)
def reduce_partials_kernel(
    p_partial,
    p_tile_bias,
    p_dkey,
    p_dvalue,
    p_dbias,
    scale,
    anchors,
    key_channels,
    value_channels,
    key_rows,
    rows,
    splits,
    bias_tiles,
    bias_slices,
    first_item,
    ROWS: tl.constexpr,
    ANCHORS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """dkey = scale * sum over splits, dvalue = sum over splits, dbias = sum over tiles.

    p_partial [items, splits, rows, ANCHORS] float32 of the batch items first_item, ...: key_rows
    rows for p_dkey [B, Ck, S], the others for p_dvalue [B, Cv, S]. p_tile_bias [items, bias_tiles,
    ANCHORS] float32 for p_dbias [B, S]. Rounded to the outputs' dtype and freed of padding.
    Grid: items * (rows / ROWS + bias_slices), bias_slices 1 or, without bias, 0; one program owns
    ROWS rows of one batch item, or its dbias.
    Reads the partial sums once: 4 bytes * splits an output element.
    """
    blocks = rows // ROWS
    item = (tl.program_id(0) // (blocks + bias_slices)).to(tl.int64)
    block = tl.program_id(0) % (blocks + bias_slices)
    b_part = tl.arange(0, ROWS)
    b_anchor = tl.arange(0, ANCHORS)
    in_anchors = b_anchor < anchors
    if block == blocks:
        # Every row of the block takes each ROWS-th tile.
        p_tile_bias += item * bias_tiles * ANCHORS
        acc = tl.zeros([ROWS, ANCHORS], dtype=tl.float32)
        for start in tl.range(0, bias_tiles, ROWS, loop_unroll_factor=UNROLL):
            b_tile = start + b_part
            mask = (b_tile < bias_tiles)[:, None]
            p_parts = p_tile_bias + b_tile[:, None] * ANCHORS + b_anchor[None, :]
            acc += tl.load(p_parts, mask=mask, other=0.0)
        p_out = p_dbias + (first_item + item) * anchors + b_anchor
        total = tl.sum(acc, axis=0)
        tl.store(p_out, total.to(p_dbias.dtype.element_ty), mask=in_anchors)
    else:
        b_row = block * ROWS + b_part
        p_partial += item * splits * rows * ANCHORS
        p_parts = p_partial + b_row[:, None] * ANCHORS + b_anchor[None, :]
        acc = tl.zeros([ROWS, ANCHORS], dtype=tl.float32)
        for _ in tl.range(0, splits, loop_unroll_factor=UNROLL):
            acc += tl.load(p_parts)
            p_parts += rows * ANCHORS
        if block * ROWS < key_rows:
            p_out = p_dkey + (first_item + item) * key_channels * anchors
            mask = (b_row < key_channels)[:, None] & in_anchors[None, :]
            acc *= scale
        else:
            b_row -= key_rows
            p_out = p_dvalue + (first_item + item) * value_channels * anchors
            mask = (b_row < value_channels)[:, None] & in_anchors[None, :]
        p_out += b_row[:, None] * anchors + b_anchor[None, :]
        tl.store(p_out, acc.to(p_dkey.dtype.element_ty), mask=mask)


def gradient_launch(variant: Variant) -> Launch:
    """The configuration of anchor_gradient_kernel: rows are channels, chunks are of positions."""
    tile = gradient_tile_of(variant)
    launch = variant.launch(tile, tile.chunk, tile.rows)
    constants = {k: v for k, v in launch.constants.items() if k != "ROW_MULTIPLE"}
    return Launch(constants, launch.warps, launch.stages, launch.registers)


def reduce_launch(anchors: int) -> Launch:
    rows = REDUCED_ELEMENTS // anchors
    return Launch({"ROWS": rows, "ANCHORS": anchors, "UNROLL": UNROLLED}, warps=4)


class AnchorGradients:
    """dkey and dvalue: partial sums of a group of batch items over slabs; then with dbias, whose
    partial sums are made elsewhere, their reduction."""

    def __init__(
        self,
        dkey: torch.Tensor,
        dvalue: torch.Tensor,
        dbias: torch.Tensor,
        variant: Variant,
        items: int,
        slab_positions: int,
    ) -> None:
        self.outputs = dkey, dvalue, dbias
        self.launch = gradient_launch(variant)
        self.step = self.launch.constants["POSITIONS"]
        self.channels = dkey.shape[1], dvalue.shape[1]
        self.block = self.launch.constants["CHANNELS"]
        self.key_blocks, value_blocks = (triton.cdiv(n, self.block) for n in self.channels)
        self.blocks = self.key_blocks + value_blocks
        wanted = triton.cdiv(PARTIAL_PROGRAMS, self.blocks * items)
        self.splits = max(1, min(wanted, slab_positions // MIN_SPLIT))
        self.split_steps = triton.cdiv(slab_positions, self.splits * self.step)
        self.partial = dkey.new_empty(
            items, self.splits, self.blocks * self.block, variant.anchors, dtype=torch.float32
        )

    def accumulate(
        self,
        query: torch.Tensor,
        dscore: torch.Tensor,
        grad: torch.Tensor,
        weight: torch.Tensor,
        first_item: int,
        items: int,
        first_position: int,
        slab_positions: int,
    ) -> None:
        """Adds maps [B, C, N] times dscore and weight [items, slab_positions, ANCHORS] of a slab."""
        run(
            anchor_gradient_kernel,
            items * self.splits * self.blocks,
            query,
            dscore,
            grad,
            weight,
            self.partial,
            query.shape[2],
            *self.channels,
            self.key_blocks,
            self.blocks,
            first_item,
            first_position // self.step,
            slab_positions // self.step,
            self.splits,
            self.split_steps,
            int(first_position > 0),
            launch=self.launch,
        )

    def finish(self, tile_bias: torch.Tensor, first_item: int, items: int, scale: float) -> None:
        """Writes the sums to the batch items first_item, ...; tile_bias [items, tiles, ANCHORS]."""
        dkey, dvalue, dbias = self.outputs
        rows, anchors = self.partial.shape[2:]
        launch = reduce_launch(anchors)
        slices = int(dbias.dim() > 1)
        run(
            reduce_partials_kernel,
            items * (rows // launch.constants["ROWS"] + slices),
            self.partial,
            tile_bias,
            dkey,
            dvalue,
            dbias if slices else dkey,
            scale,
            dkey.shape[2],
            *self.channels,
            self.key_blocks * self.block,
            rows,
            self.splits,
            tile_bias.shape[1],
            slices,
            first_item,
            launch=launch,
        )


def partial_cases() -> list[AotCase]:
    """Every compilation that the sums over positions can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        maps = dict.fromkeys(("p_query", "p_dscore", "p_grad", "p_weight"), dtype)
        launches = [gradient_launch(variant) for variant in variants(dtype)]
        for launch in {str(launch): launch for launch in launches}.values():
            cases.append(AotCase(anchor_gradient_kernel, maps | {"p_partial": "fp32"}, launch))
        partial = dict.fromkeys(("p_partial", "p_tile_bias"), "fp32")
        partial |= dict.fromkeys(("p_dkey", "p_dvalue", "p_dbias"), dtype)
        for padded in ANCHOR_CLASSES:
            launch = reduce_launch(padded)
            cases.append(AotCase(reduce_partials_kernel, partial, launch, {"scale": "fp32"}))
    return cases
