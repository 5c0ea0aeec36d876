"""Triton backward of upsample_cross_entropy: gradients gathered at the positions of the small map.

A pixel that reads a small position reads nothing farther than its neighbours. So a program holds
three rows of three neighbours of its positions, and makes the logits of every reader out of them;
per reader it loads only what belongs to the pixel, once for all classes of its block.
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import readers_begin, readers_end, resize_pair, share_of
from .._class_tiles import class_offsets, load_wide, mix, pixel_offsets, reader_range
from .._launch import TRITON_DTYPES, AotCase, aligned_storage, device_guard, run
from .forward import UNSPECIALIZED, tile_launch


@triton.jit
def load_columns(p_scores, row, b_source, mask, classes, small_width, INNER: tl.constexpr):
    """Logits [POSITIONS, CLASSES] of a row of the small map: left of, at and right of positions."""
    b_left = row * small_width + tl.maximum(b_source - 1, 0)
    b_right = row * small_width + tl.minimum(b_source + 1, small_width - 1)
    return (
        load_wide(p_scores + pixel_offsets(b_left, classes, INNER), mask),
        load_wide(p_scores + pixel_offsets(row * small_width + b_source, classes, INNER), mask),
        load_wide(p_scores + pixel_offsets(b_right, classes, INNER), mask),
    )


@triton.jit
def neighbour(index, source, b_before, b_at, b_after):
    """The values of the input `index`, which is source - 1, source or source + 1."""
    return tl.where(index == source, b_at, tl.where(index < source, b_before, b_after))


@triton.jit(do_not_specialize=[*UNSPECIALIZED, "has_lse"])
def cross_entropy_backward_kernel(
    p_grad,
    p_grad_lse,
    p_logits,
    p_target,
    p_statistics,
    p_dlogits,
    batches,
    classes,
    height,
    width,
    small_height,
    small_width,
    ignore_index,
    align_corners,
    has_lse,
    POSITIONS: tl.constexpr,
    CLASSES: tl.constexpr,
    INNER: tl.constexpr,
):
    """dlogits[k, i, j] = sum over the pixels reading (i, j) of weight * d[k], in row-major order.

    d[k] = (grad + grad_lse) * exp((l[k] - m) - rest) - grad * [k = target], 0 where the target is
    no class; l, m and rest as in cross_entropy_kernel. p_grad, p_grad_lse (read with has_lse
    alone) [B, H, W], p_statistics [2, B, H, W] float32, p_target [B, H, W] int64; p_logits,
    p_dlogits [B, K, h, w], or channels last with INNER.
    Grid: B * h * ceil(w / POSITIONS) * ceil(K / CLASSES); one program owns positions of a row of
    the small map for a block of classes of one item. Reads 20 bytes a reader of a position, which
    the caches hold from the neighbouring position that it also reads; writes dlogits once.
    """
    tiles = tl.cdiv(small_width, POSITIONS)
    blocks = tl.cdiv(classes, CLASSES)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    row = (tl.program_id(0) // (blocks * tiles)) % small_height
    batch = (tl.program_id(0) // (blocks * tiles * small_height)).to(tl.int64)
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_class = block * CLASSES + tl.arange(0, CLASSES)
    in_map = b_position < small_width
    mask = in_map[:, None] & (b_class < classes)[None, :]
    b_source = tl.minimum(b_position, small_width - 1)

    small_area = small_height * small_width
    item = batch * classes * small_area + class_offsets(b_class, small_area, INNER)
    p_scores = p_logits + item
    above = tl.maximum(row - 1, 0)
    below = tl.minimum(row + 1, small_height - 1)
    b_al, b_ac, b_ar = load_columns(p_scores, above, b_source, mask, classes, small_width, INNER)
    b_cl, b_cc, b_cr = load_columns(p_scores, row, b_source, mask, classes, small_width, INNER)
    b_bl, b_bc, b_br = load_columns(p_scores, below, b_source, mask, classes, small_width, INNER)

    first_row = readers_begin(row, small_height, height, align_corners)
    last_row = readers_end(row, small_height, height, align_corners)
    b_begin, b_end = reader_range(b_source, small_width, width, align_corners)
    most = tl.max(tl.where(in_map, b_end - b_begin, 0), axis=0)
    pixels = batches.to(tl.int64) * height * width
    with_lse = tl.where(has_lse != 0, width, 0)
    b_sum = tl.zeros([POSITIONS, CLASSES], tl.float32)
    for y in range(first_row, last_row):
        at = row * 0 + y  # a tensor for the interpreter too
        top, bottom, down = resize_pair(at, small_height, height, align_corners)
        share_y = share_of(top, bottom, down, row)
        b_left = mix(
            neighbour(top, row, b_al, b_cl, b_bl), neighbour(bottom, row, b_al, b_cl, b_bl), down
        )
        b_centre = mix(
            neighbour(top, row, b_ac, b_cc, b_bc), neighbour(bottom, row, b_ac, b_cc, b_bc), down
        )
        b_right = mix(
            neighbour(top, row, b_ar, b_cr, b_br), neighbour(bottom, row, b_ar, b_cr, b_br), down
        )
        place = (batch * height + y) * width
        readers = tl.where((top == row) | (bottom == row), most, 0)
        for step in range(readers):
            b_x = b_begin + step
            b_first, b_second, b_across = resize_pair(b_x, small_width, width, align_corners)
            b_reads = in_map & (b_x < b_end) & ((b_first == b_source) | (b_second == b_source))
            b_share = share_y * share_of(b_first, b_second, b_across, b_source)
            b_grad = tl.load(p_grad + place + b_x, mask=b_reads, other=0.0)
            b_lse = tl.load(p_grad_lse + place + b_x, mask=b_reads & (b_x < with_lse), other=0.0)
            b_target = tl.load(p_target + place + b_x, mask=b_reads, other=ignore_index)
            b_m = tl.load(p_statistics + place + b_x, mask=b_reads, other=0.0)
            b_rest = tl.load(p_statistics + pixels + place + b_x, mask=b_reads, other=0.0)
            b_counts = (b_target >= 0) & (b_target < classes) & (b_target != ignore_index)
            b_logit = mix(
                neighbour(b_first[:, None], b_source[:, None], b_left, b_centre, b_right),
                neighbour(b_second[:, None], b_source[:, None], b_left, b_centre, b_right),
                b_across[:, None],
            )
            b_true = tl.where(b_target[:, None] == b_class[None, :], b_grad[:, None], 0.0)
            b_d = (b_grad + b_lse)[:, None] * tl.exp((b_logit - b_m[:, None]) - b_rest[:, None])
            b_d = b_share[:, None] * (b_d - b_true)
            b_sum += tl.where((b_reads & b_counts)[:, None], b_d, 0.0)
    p_out = p_dlogits + item + pixel_offsets(row * small_width + b_position, classes, INNER)
    tl.store(p_out, b_sum.to(p_dlogits.dtype.element_ty), mask=mask)


BACKWARD = {False: tile_launch(32, 16, False), True: tile_launch(16, 32, True)}


def backward(
    grad: torch.Tensor,
    grad_lse: torch.Tensor | None,
    logits: torch.Tensor,
    target: torch.Tensor,
    statistics: torch.Tensor,
    ignore_index: int,
    align_corners: bool,
) -> torch.Tensor:
    """dlogits like logits, for float32 gradients of the losses and of the log-sum-exps."""
    inner = is_channels_inner(logits)
    batch, classes, small_height, small_width = logits.shape
    launch = BACKWARD[inner]
    dlogits = empty_map(logits.shape, logits, inner)
    tiles = triton.cdiv(small_width, launch.constants["POSITIONS"])
    blocks = triton.cdiv(classes, launch.constants["CLASSES"])
    with device_guard(logits):
        run(
            cross_entropy_backward_kernel,
            batch * small_height * tiles * blocks,
            aligned_storage(grad),
            aligned_storage(grad if grad_lse is None else grad_lse),
            *map(aligned_storage, (logits, target, statistics)),
            dlogits,
            batch,
            classes,
            *target.shape[1:],
            small_height,
            small_width,
            ignore_index,
            int(align_corners),
            int(grad_lse is not None),
            launch=launch,
        )
    return dlogits


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    others = {"p_grad": "fp32", "p_grad_lse": "fp32", "p_target": "i64", "p_statistics": "fp32"}
    return [
        AotCase(
            cross_entropy_backward_kernel,
            {"p_logits": dtype, "p_dlogits": dtype, **others},
            BACKWARD[inner],
        )
        for dtype, inner in product(TRITON_DTYPES.values(), (False, True))
    ]
