"""Second half of upsample_cross_entropy's backward: from cells to the positions between them."""

from __future__ import annotations

import functools

import torch
import triton
import triton.language as tl

from .._cells import CLASS_VECTORS
from .._launch import TRITON_DTYPES, AotCase, Launch, run
from .._multiples import known_multiple


@triton.jit(do_not_specialize=["batches", "classes", "small_height", "small_width", "pieces"])
def join_cells_kernel(
    p_sums,
    p_dlogits,
    batches,
    classes,
    small_height,
    small_width,
    pieces,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    VECTOR: tl.constexpr,
    INNER: tl.constexpr,
):
    """dlogits[k, i, j] = sums of the units of the four cells around (i, j), in a fixed order.

    p_sums as cell_gradients_kernel writes them; p_dlogits [B, K, h, w], or channels last with
    INNER. Grid: B * h * ceil(w / POSITIONS) * ceil(K / CLASSES); one program owns positions of a
    row for a block of classes. Reads 16 bytes a unit and class, writes dlogits once.
    """
    if INNER:
        classes = known_multiple(classes, VECTOR)
    tiles = tl.cdiv(small_width, POSITIONS)
    blocks = tl.cdiv(classes, CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    row = (tl.program_id(0) // (blocks * tiles)) % small_height
    batch = (tl.program_id(0) // (blocks * tiles * small_height)).to(tl.int64)
    row_units = (small_width + 1) * pieces
    units = (small_height + 1) * row_units
    # The axis of what lies side by side in memory is the last one.
    if INNER:
        b_position = tile * POSITIONS + tl.arange(0, POSITIONS)[:, None]
        b_class = block * CLASSES + tl.arange(0, CLASSES)[None, :]
        b_sums = b_position.to(tl.int64) * pieces * classes + b_class
        b_out = (row * small_width + b_position).to(tl.int64) * classes + b_class
        step = classes
    else:
        b_position = tile * POSITIONS + tl.arange(0, POSITIONS)[None, :]
        b_class = block * CLASSES + tl.arange(0, CLASSES)[:, None]
        b_sums = b_class.to(tl.int64) * units + b_position * pieces
        b_out = b_class.to(tl.int64) * small_height * small_width + row * small_width + b_position
        step = 1
    mask = (b_position < small_width) & (b_class < classes)
    of_corner = batches.to(tl.int64) * classes * units
    p_above = p_sums + batch * classes * units + (row * row_units).to(tl.int64) * step + b_sums
    p_below = p_above + row_units.to(tl.int64) * step
    b_total = b_out.to(tl.float32) * 0.0
    for piece in range(pieces):
        left = (piece * step).to(tl.int64)
        right = left + pieces * step
        b_br = tl.load(p_above + 3 * of_corner + left, mask=mask, other=0.0)
        b_bl = tl.load(p_above + 2 * of_corner + right, mask=mask, other=0.0)
        b_tr = tl.load(p_below + of_corner + left, mask=mask, other=0.0)
        b_tl = tl.load(p_below + right, mask=mask, other=0.0)
        b_total += (b_br + b_bl) + (b_tr + b_tl)
    p_out = p_dlogits + batch * classes * small_height * small_width + b_out
    tl.store(p_out, b_total.to(p_dlogits.dtype.element_ty), mask=mask)


@functools.cache
def join_launch(inner: bool, vector: int) -> Launch:
    constants = {"POSITIONS": 16 if inner else 64, "CLASSES": 32 if inner else 8}
    return Launch(constants | {"VECTOR": vector, "INNER": inner}, warps=4)


def join_cells(
    sums: torch.Tensor, dlogits: torch.Tensor, pieces: int, inner: bool, vector: int
) -> None:
    """Fills dlogits from the sums of cells, which are in `pieces` units each."""
    batch, classes, small_height, small_width = dlogits.shape
    launch = join_launch(inner, vector)
    tiles = triton.cdiv(small_width, launch.constants["POSITIONS"])
    blocks = triton.cdiv(classes, launch.constants["CLASSES"])
    run(
        join_cells_kernel,
        batch * small_height * tiles * blocks,
        sums,
        dlogits,
        batch,
        classes,
        small_height,
        small_width,
        pieces,
        launch=launch,
    )


def aot_cases() -> list[AotCase]:
    """Every compilation that `join_cells` can ask for."""
    return [
        AotCase(join_cells_kernel, {"p_sums": "fp32", "p_dlogits": dtype}, launch)
        for dtype in TRITON_DTYPES.values()
        for launch in (join_launch(False, 1), *(join_launch(True, v) for v in CLASS_VECTORS[dtype]))
    ]
