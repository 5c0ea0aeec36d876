"""Triton backward of merge_scales.

"attention": one kernel makes the gradient of the logits, and the weights of the scales for the
next one. "max": the forward kernel notes the winning scale of every output in a byte. Then one
kernel adds up for all maps, row by row, what the outputs of a column send there, and another one
adds those sums up along the rows. Everything is gathered, in row-major order.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import triton

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, aligned_storage, device_guard, run
from .forward import merge
from .logits import merge_logits_backward_kernel
from .maps import merge_columns_backward_kernel, merge_rows_backward_kernel
from .tiles import (
    CAPACITIES,
    MAPS,
    capacity_for,
    class_blocks,
    padded_maps,
    tile_launch,
)


def logits_launch(inner: bool, capacity: int) -> Launch:
    if capacity > 3:  # the neighbours in all maps leave registers for one class
        return tile_launch(inner, capacity, CLASSES=1)
    # Channels last, 128 registers suffice, and four programs share a multiprocessor.
    return replace(tile_launch(inner, capacity), registers=128 if inner else 255)


def rows_launch(inner: bool, capacity: int, winners: bool) -> Launch:
    launch = tile_launch(inner, capacity, WINNERS=winners)
    constants = launch.constants | {"POSITIONS": 64}
    return replace(launch, constants=constants, warps=4 if inner else 2)


def backward(
    grad: torch.Tensor,
    scores: list[torch.Tensor],
    logits: torch.Tensor | None,
    reduce: int,
    align_corners: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The packed gradients of the maps, and dlogits like the logits or of shape [0]."""
    inner = is_channels_inner(scores[0])
    grad = aligned_storage(grad)
    dlogits = grad.new_empty((0,))
    weights = grad.new_empty((1,), dtype=torch.float32)
    winners = grad.new_empty((1,), dtype=torch.int8)
    packed = grad.new_empty((sum(s.numel() for s in scores),))
    if logits is not None:
        weights = grad.new_empty(logits.shape, dtype=torch.float32)
        dlogits = _logits_backward(grad, scores, logits, weights, packed, align_corners)
    elif reduce == 2:
        winners = empty_map(grad.shape, winners, inner)
        merge(scores, None, winners, reduce, align_corners, winner=True)
    _maps_backward(grad, scores, weights, winners, packed, reduce, align_corners)
    return packed, dlogits


def _logits_backward(
    grad: torch.Tensor,
    scores: list[torch.Tensor],
    logits: torch.Tensor,
    weights: torch.Tensor,
    packed: torch.Tensor,
    align_corners: bool,
) -> torch.Tensor:
    """dlogits; fills `weights` [B, S, H, W], contiguous, and `packed` for maps of their size."""
    inner = is_channels_inner(scores[0])
    batch, classes, height, width = grad.shape
    launch = logits_launch(inner, capacity_for(scores))
    dlogits = empty_map(logits.shape, logits, inner)
    maps, sizes = padded_maps(scores)
    with device_guard(grad):
        run(
            merge_logits_backward_kernel,
            batch * triton.cdiv(height * width, launch.constants["POSITIONS"]),
            grad,
            *maps,
            aligned_storage(logits),
            dlogits,
            weights,
            packed,
            *sizes,
            batch,
            len(scores),
            classes,
            height,
            width,
            int(align_corners),
            launch=launch,
        )
    return dlogits


def _maps_backward(
    grad: torch.Tensor,
    scores: list[torch.Tensor],
    weights: torch.Tensor,
    winners: torch.Tensor,
    packed: torch.Tensor,
    reduce: int,
    align_corners: bool,
) -> None:
    """Fills `packed` with the gradients of all maps that are not there yet."""
    inner = is_channels_inner(scores[0])
    batch, classes, height, width = grad.shape
    rows = rows_launch(inner, capacity_for(scores), reduce == 2)
    columns = tile_launch(inner, capacity_for(scores))
    row_tiles = triton.cdiv(width, rows.constants["POSITIONS"])
    positions, blocks = columns.constants["POSITIONS"], class_blocks(classes, columns)
    sizes = [tuple(s.shape[2:]) for s in scores]
    left = sum(h for h, w in sizes if reduce != 0 or (h, w) != (height, width))
    narrower = [(h, w) for h, w in sizes if w != width]
    row_sums = (batch, sum(h for h, _ in narrower), width * classes)
    sums = grad.new_empty(row_sums, dtype=torch.float32)
    missing = [0] * (8 - len(scores))
    sides = (*(h for h, _ in sizes), *missing, *(w for _, w in sizes), *missing)
    with device_guard(grad):
        if left:
            run(
                merge_rows_backward_kernel,
                batch * left * row_tiles * blocks,
                grad,
                weights,
                winners,
                sums,
                packed,
                *sides,
                batch,
                len(scores),
                classes,
                height,
                width,
                reduce,
                int(align_corners),
                launch=rows,
            )
        if narrower:
            run(
                merge_columns_backward_kernel,
                batch * sum(h * triton.cdiv(w, positions) for h, w in narrower) * blocks,
                sums,
                packed,
                *sides,
                batch,
                classes,
                height,
                width,
                int(align_corners),
                launch=columns,
            )


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, besides those of `merge`."""
    cases = []
    flags = (False, True)
    for dtype, inner, capacity in product(TRITON_DTYPES.values(), flags, CAPACITIES):
        pointers = dict.fromkeys(("p_grad", *MAPS, "p_logits", "p_dlogits", "p_out"), dtype)
        pointers["p_weights"] = "fp32"
        launch = logits_launch(inner, capacity)
        cases.append(AotCase(merge_logits_backward_kernel, pointers, launch))
        pointers = {"p_sums": "fp32", "p_out": dtype}
        launch = tile_launch(inner, capacity)
        cases.append(AotCase(merge_columns_backward_kernel, pointers, launch))
        pointers |= {"p_grad": dtype, "p_weights": "fp32", "p_winners": "i8"}
        for winners in flags:
            launch = rows_launch(inner, capacity, winners)
            cases.append(AotCase(merge_rows_backward_kernel, pointers, launch))
    return cases
