"""Sums over positions in the backward of anchor_attention: partial sums and their reduction."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import known_multiple
from .._products import dot
from .tiles import ANCHOR_CLASSES, Variant, gradient_tile_of, variants

# Programs of the anchor gradients, about: two for each multiprocessor of the largest GPUs. Fixed,
# not asked of the device, so that sums are split the same way everywhere.
PARTIAL_PROGRAMS = 256
MIN_SPLIT = 256  # positions that are worth a partial sum of their own
SPARE_ROWS = tl.constexpr(4)  # rows of partial sums behind those of channels: the first is of dbias
REDUCED_ELEMENTS = 512  # of a program: 4 a thread
UNROLLED = 4  # partial sums that a thread has on their way at once


@triton.jit(
    do_not_specialize=[
        "positions",
        "key_channels",
        "value_channels",
        "key_blocks",
        "programs",
        "rows",
        "padded",
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
    programs,
    rows,
    padded,
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
    """partial[split] (+)= query ds, grad p: sums over the split's positions of outer products.

    p_query [B, Ck, N], p_grad [B, Cv, N]: contiguous, or with INNER the channel index fastest.
    p_dscore, p_weight [items, slab_steps * POSITIONS, ANCHORS]: positions from first_step *
    POSITIONS on of the batch items first_item, ... of the maps; padded is ANCHORS.
    p_partial [items, splits, rows, ANCHORS] float32: key_blocks blocks of CHANNELS rows for the
    key, others for the value, a row with the sum of ds alone; set, or with `add` added to.
    Grid: items * splits * programs, one for every block and, if the row is wanted, one for it; a
    program owns CHANNELS channels (or the row) of split_steps * POSITIONS positions. Reads the maps
    once, ds and p once for every CHANNELS channels (L2).
    """
    block = tl.program_id(0) % programs
    split = (tl.program_id(0) // programs) % splits
    item = (tl.program_id(0) // (programs * splits)).to(tl.int64)
    # Steps instead of positions show that tiles start on multiples of POSITIONS.
    begin = split * split_steps
    end = tl.minimum(begin + split_steps, slab_steps)
    b_step = tl.arange(0, POSITIONS)
    b_anchor = tl.arange(0, ANCHORS)
    p_partial += (item * splits + split) * rows * ANCHORS
    if block * CHANNELS + SPARE_ROWS == rows:
        p_tile = p_dscore + item * slab_steps * (POSITIONS * ANCHORS)
        p_tile += b_step[:, None] * ANCHORS + b_anchor[None, :]
        total = tl.zeros([POSITIONS, ANCHORS], dtype=tl.float32)
        for step in range(begin, end):
            total += tl.load(p_tile + step * (POSITIONS * ANCHORS)).to(tl.float32)
        p_row = p_partial + block * (CHANNELS * ANCHORS) + b_anchor
        b_row = tl.sum(total, axis=0)
        if add:
            b_row += tl.load(p_row)
        tl.store(p_row, b_row)
        return
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
    p_map += (first_item + item) * channels * positions
    p_rows += item * slab_steps * (POSITIONS * ANCHORS)
    in_map = (b_channel < channels)[:, None]
    length = ANCHORS
    if PRECISION == "tf32x3":
        length = padded  # the same, unknown to the compiler: single elements are split best
    acc = tl.zeros([CHANNELS, ANCHORS], dtype=tl.float32)
    for step in range(begin, end):
        b_position = (first_step + step) * POSITIONS + b_step
        inside = b_position < positions
        if INNER:
            p_tile = p_map + b_position.to(tl.int64)[None, :] * channels + b_channel[:, None]
        else:
            p_tile = p_map + b_channel.to(tl.int64)[:, None] * positions + b_position[None, :]
        b_map = tl.load(p_tile, mask=in_map & inside[None, :], other=0.0)  # [CHANNELS, POSITIONS]
        p_tile_rows = p_rows + (step * POSITIONS + b_step)[:, None] * length + b_anchor[None, :]
        b_rows = tl.load(p_tile_rows, mask=inside[:, None], other=0.0)  # [POSITIONS, ANCHORS]
        acc = dot(b_map, b_rows, acc, PRECISION)
    b_own = block * CHANNELS + tl.arange(0, CHANNELS)
    p_out = p_partial + b_own[:, None] * ANCHORS + b_anchor[None, :]
    if add:
        acc += tl.load(p_out)
    tl.store(p_out, acc)


@triton.jit(
    do_not_specialize=[
        "anchors",
        "key_channels",
        "value_channels",
        "key_rows",
        "rows",
        "splits",
        "programs",
        "first_item",
    ]
)
def reduce_partials_kernel(
    p_partial,
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
    programs,
    first_item,
    ROWS: tl.constexpr,
    ANCHORS: tl.constexpr,
    UNROLL: tl.constexpr,
):
    """dkey = scale * sum over splits of its rows; dvalue and dbias likewise, without scale.

    p_partial [items, splits, rows, ANCHORS] float32 of the batch items first_item, ...: as
    anchor_gradient_kernel leaves it, key_rows rows for p_dkey [B, Ck, S], others for p_dvalue
    [B, Cv, S], one for p_dbias [B, S]. Rounded to the outputs' dtype.
    Grid: items * programs, of ROWS rows each: all, or without the last for dbias.
    Reads the partial sums once: 4 bytes * splits an output element. One after the other: the sum is
    the same in every run.
    """
    item = (tl.program_id(0) // programs).to(tl.int64)
    first_row = tl.program_id(0) % programs * ROWS
    b_part = tl.arange(0, ROWS)
    p_parts = p_partial + (item * splits * rows + first_row) * ANCHORS
    p_parts += b_part[:, None] * ANCHORS + tl.arange(0, ANCHORS)[None, :]
    acc = tl.zeros([ROWS, ANCHORS], dtype=tl.float32)
    for _ in tl.range(0, splits, loop_unroll_factor=UNROLL):
        acc += tl.load(p_parts)
        p_parts += rows * ANCHORS
    p_out = p_dvalue
    channels = value_channels
    if first_row < key_rows:
        p_out = p_dkey
        channels = key_channels
        acc *= scale
    elif first_row + SPARE_ROWS == rows:
        p_out = p_dbias
        channels = 1
        first_row = 0
    else:
        first_row -= key_rows
    b_row = first_row + b_part
    b_anchor = tl.arange(0, ANCHORS)
    mask = (b_row < channels)[:, None] & (b_anchor < anchors)[None, :]
    p_out += ((first_item + item) * channels + b_row[:, None]) * anchors + b_anchor[None, :]
    tl.store(p_out, acc.to(p_out.dtype.element_ty), mask=mask)


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
    """dkey, dvalue and dbias: partial sums of a group of batch items over slabs, then reduced."""

    def __init__(
        self,
        dkey: torch.Tensor,
        dvalue: torch.Tensor,
        dbias: torch.Tensor | None,
        variant: Variant,
        items: int,
        slab_positions: int,
    ) -> None:
        self.outputs = dkey, dvalue, dkey if dbias is None else dbias
        self.launch = gradient_launch(variant)
        self.reduction = reduce_launch(variant.anchors)
        self.step = self.launch.constants["POSITIONS"]
        self.channels = dkey.shape[1], dvalue.shape[1]
        self.block = self.launch.constants["CHANNELS"]
        self.key_blocks, value_blocks = (triton.cdiv(n, self.block) for n in self.channels)
        self.blocks = self.key_blocks + value_blocks
        self.bias_programs = int(dbias is not None)
        self.rows = self.blocks * self.block + SPARE_ROWS.value
        wanted = triton.cdiv(PARTIAL_PROGRAMS, self.blocks * items)
        self.splits = max(1, min(wanted, slab_positions // MIN_SPLIT))
        self.split_steps = triton.cdiv(slab_positions, self.splits * self.step)
        self.partial = dkey.new_empty(
            items, self.splits, self.rows, variant.anchors, dtype=torch.float32
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
        """Adds maps [B, C, N] times dscore and weight [items, slab_positions, ANCHORS]."""
        programs = self.blocks + self.bias_programs
        run(
            anchor_gradient_kernel,
            items * self.splits * programs,
            query,
            dscore,
            grad,
            weight,
            self.partial,
            query.shape[2],
            *self.channels,
            self.key_blocks,
            programs,
            self.rows,
            self.partial.shape[3],
            first_item,
            first_position // self.step,
            slab_positions // self.step,
            self.splits,
            self.split_steps,
            int(first_position > 0),
            launch=self.launch,
        )

    def finish(self, first_item: int, items: int, scale: float) -> None:
        """Writes the sums to the batch items first_item, ... of the outputs."""
        rows = self.reduction.constants["ROWS"]
        programs = (self.rows - SPARE_ROWS.value) // rows + self.bias_programs
        run(
            reduce_partials_kernel,
            items * programs,
            self.partial,
            *self.outputs,
            scale,
            self.outputs[0].shape[2],
            *self.channels,
            self.key_blocks * self.block,
            self.rows,
            self.splits,
            programs,
            first_item,
            launch=self.reduction,
        )


def partial_cases() -> list[AotCase]:
    """Every compilation that the sums over positions can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        maps = dict.fromkeys(("p_query", "p_dscore", "p_grad", "p_weight"), dtype)
        maps["p_partial"] = "fp32"
        launches = {(str(gradient_launch(v)), v.hopper): v for v in variants(dtype)}
        for variant in launches.values():
            launch = gradient_launch(variant)
            cases.append(
                AotCase(anchor_gradient_kernel, maps, launch, generations=variant.generations)
            )
        partial = dict.fromkeys(("p_dkey", "p_dvalue", "p_dbias"), dtype) | {"p_partial": "fp32"}
        for launch in map(reduce_launch, ANCHOR_CLASSES):
            cases.append(AotCase(reduce_partials_kernel, partial, launch, {"scale": "fp32"}))
    return cases
