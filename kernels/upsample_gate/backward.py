"""Triton backward of upsample_gate.

It goes over the map once for every row of the small map that an output row reads (two where maps
grow): it sums the gate's gradients of a column of outputs vertically, and a second kernel sums
those horizontally. Everything is gathered, no atomics.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._bilinear import readers_begin, readers_end, resize_pair, share_of
from .._launch import TRITON_DTYPES, AotCase, on_device, run
from .._tiles import owned_block, tile_offsets
from .forward import UNSPECIALIZED, activate, integers, resized_logits, tile_launch


@triton.jit
def activate_backward(b_z, b_gate, b_grad, activation):
    """Gradient of z for that of the gate. PyTorch passes gradients through the ReLU of NaN."""
    b_sigmoid = b_grad * ((1.0 - b_gate) * b_gate)
    b_relu = tl.where(b_z <= 0, 0.0, b_grad)
    return tl.where(activation == 1, b_sigmoid, tl.where(activation == 2, b_relu, b_grad))


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gate_rows_backward_kernel(
    p_grad,
    p_x,
    p_logits,
    p_dx,
    p_sums,
    input_weight,
    channels,
    height,
    width,
    small_height,
    small_width,
    activation,
    activation_first,
    residual,
    align_corners,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """dx, and sums[i, x] = sum over output rows y of weight(y, i) * dz[y, x] for small rows i.

    p_grad, p_x, p_dx [B, C, H, W], p_logits [B, C, h, w], p_sums [B, C, h, W] float32, or channels
    last with INNER. dz is the gradient of the resized logits.
    Grid: B * h * ceil(C / CHANNELS) * ceil(W / POSITIONS); one program owns columns of one row of
    the sums, and dx in the output rows whose first tap is this row.
    Reads x and grad once a tap, twice where maps grow; writes dx and sums once.
    """
    tiles = tl.cdiv(width, POSITIONS)
    blocks = tl.cdiv(channels, CHANNELS)
    tile, block, rest = owned_block(tiles, blocks, INNER)
    source = rest % small_height
    batch = (rest // small_height).to(tl.int64)
    sizes = (height, width, small_height, small_width)
    b_column = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    mask = (b_column < width)[:, None] & (b_channel < channels)[None, :]
    b_column = tl.minimum(b_column, width - 1)
    first = tl.where(activation_first != 0, activation, 0)
    after = tl.where(activation_first != 0, 0, activation)
    p_item = p_logits + batch * channels * small_height * small_width
    area = height * width
    b_sum = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    begin = readers_begin(source, small_height, height, align_corners)
    end = readers_end(source, small_height, height, align_corners)
    for row in range(begin, end):
        b_row = tl.zeros([POSITIONS], tl.int32) + row
        top, bottom, weight = resize_pair(b_row, small_height, height, align_corners)
        share = share_of(top, bottom, weight, source)
        owned = (top == source)[:, None]
        reads = mask & ((top == source) | (bottom == source))[:, None]
        b_z = resized_logits(
            p_item, b_row, b_column, b_channel, reads, channels, sizes, first, align_corners, INNER
        )
        b_gate = activate(b_z, after)
        b_pixel = row * width + b_column
        place = batch * channels * area + tile_offsets(b_pixel, b_channel, channels, area, INNER)
        b_x = tl.load(p_x + place, mask=reads, other=0.0).to(tl.float32)
        b_grad = tl.load(p_grad + place, mask=reads, other=0.0).to(tl.float32)
        b_dx = b_grad * b_gate
        b_dx = tl.where(residual == 1, b_dx + input_weight * b_grad, b_dx)
        tl.store(p_dx + place, b_dx.to(p_dx.dtype.element_ty), mask=reads & owned)
        b_dgate = b_grad * b_x
        b_dgate = tl.where(residual == 2, b_dgate + b_grad, b_dgate)
        b_dz = activate_backward(b_z, b_gate, b_dgate, after)
        b_sum += tl.where(reads, share[:, None] * b_dz, 0.0)
    sums = small_height * width
    place = tile_offsets(source * width + b_column, b_channel, channels, sums, INNER)
    tl.store(p_sums + batch * channels * sums + place, b_sum, mask=mask)


@triton.jit(do_not_specialize=UNSPECIALIZED)
def gate_columns_backward_kernel(
    p_sums,
    p_logits,
    p_out,
    channels,
    height,
    width,
    small_height,
    small_width,
    activation,
    activation_first,
    residual,
    align_corners,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
):
    """dlogits[i, j] = sum over columns x of weight(x, j) * sums[i, x].

    Pointers as in gate_rows_backward_kernel; p_out like p_logits. Times the activation's
    derivative where it came first.
    Grid: B * h * w * ceil(C / CHANNELS); one program owns one logit of a few channels of one item.
    Reads sums once a tap.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    block = tl.program_id(0) % blocks
    pixel = (tl.program_id(0) // blocks) % (small_height * small_width)
    batch = (tl.program_id(0) // (blocks * small_height * small_width)).to(tl.int64)
    source = pixel % small_width
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = b_channel < channels
    sums = small_height * width
    p_item = p_sums + batch * channels * sums
    b_out = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    begin = readers_begin(source, small_width, width, align_corners)
    end = readers_end(source, small_width, width, align_corners)
    for start in range(begin, end, POSITIONS):
        b_column = start + tl.arange(0, POSITIONS)
        mask = (b_column < end)[:, None] & in_channels[None, :]
        left, right, weight = resize_pair(b_column, small_width, width, align_corners)
        share = share_of(left, right, weight, source)
        mask = mask & ((left == source) | (right == source))[:, None]
        b_pixel = (pixel // small_width) * width + b_column
        place = tile_offsets(b_pixel, b_channel, channels, sums, INNER)
        b_sum = tl.load(p_item + place, mask=mask, other=0.0)
        b_out += tl.where(mask, share[:, None] * b_sum, 0.0)
    b_total = tl.sum(b_out, axis=0)
    area = small_height * small_width
    place = batch * channels * area
    if INNER:
        place += pixel * channels + b_channel
    else:
        place += b_channel.to(tl.int64) * area + pixel
    b_z = tl.load(p_logits + place, mask=in_channels, other=0.0).to(tl.float32)
    b_first = activate_backward(b_z, activate(b_z, activation), b_total, activation)
    b_total = tl.where(activation_first != 0, b_first, b_total)
    tl.store(p_out + place, b_total.to(p_out.dtype.element_ty), mask=in_channels)


ROWS = {False: tile_launch(128, 8, False), True: tile_launch(16, 64, True)}
COLUMNS = {False: tile_launch(32, 8, False), True: tile_launch(8, 128, True)}


def backward(
    grad: torch.Tensor, x: torch.Tensor, logits: torch.Tensor, *options: Any
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx like x, dlogits like logits."""
    inner = is_channels_inner(x)
    batch, channels, _, width = x.shape
    small_height, small_width = logits.shape[2:]
    dx, dlogits = empty_map(x.shape, x, inner), empty_map(logits.shape, x, inner)
    sums = x.new_empty((batch, channels, small_height, width), dtype=torch.float32)
    rows, columns = ROWS[inner], COLUMNS[inner]
    tiles = triton.cdiv(width, rows.constants["POSITIONS"])
    blocks = triton.cdiv(channels, rows.constants["CHANNELS"])
    programs = batch * small_height * tiles * blocks
    logit_blocks = triton.cdiv(channels, columns.constants["CHANNELS"])
    with on_device(grad, x, logits) as maps:
        sizes = integers(x, logits, options)
        run(gate_rows_backward_kernel, programs, *maps, dx, sums, options[3], *sizes, launch=rows)
        run(
            gate_columns_backward_kernel,
            batch * small_height * small_width * logit_blocks,
            sums,
            maps[2],
            dlogits,
            *sizes,
            launch=columns,
        )
    return dx, dlogits


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for."""
    cases = []
    for dtype, inner in product(TRITON_DTYPES.values(), (False, True)):
        pointers = dict.fromkeys(("p_grad", "p_x", "p_logits", "p_dx"), dtype) | {"p_sums": "fp32"}
        scalars = {"input_weight": "fp32"}
        cases.append(AotCase(gate_rows_backward_kernel, pointers, ROWS[inner], scalars))
        pointers = {"p_sums": "fp32", "p_logits": dtype, "p_out": dtype}
        cases.append(AotCase(gate_columns_backward_kernel, pointers, COLUMNS[inner]))
    return cases
