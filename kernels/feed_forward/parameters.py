"""Gradients of feed_forward's parameters: programs own hidden channels, and sum over tiles.

dz, the gradient of what the GELU is applied to, is the one map of hidden channels in memory; the
hidden map itself is computed again, its gradient twice (here, and for grad_x).
"""

from __future__ import annotations

from itertools import product

import torch
import triton
import triton.language as tl

from .._gelu import gelu_and_slope
from .._launch import AotCase, Launch, run
from .._multiples import FACTORS, known_multiple
from .._products import dot
from .._rare import hidden_zero
from .gradients import (
    add_tap_sums,
    hidden_gradient,
    offsets_of,
    row_length,
    split_rows,
    store_matrix,
    store_sum,
)
from .tiles import (
    CELLS,
    CLASSES,
    COLUMNS,
    FOR_THREADS,
    FUSED,
    HALO,
    INTERPRETED_HIDDEN,
    MOST_CHANNELS,
    OWN,
    class_of,
    convolved,
    halo_pixels,
    join_rows,
    load_matrix,
    load_pixels,
    load_taps,
    load_vector,
    own_pixels,
    tile_at,
    tiles_of,
    zero_sums,
)

SIZES = ["channels", "hidden", "outputs", "height", "width", "biased", "tiles", "split_tiles"]
PROGRAMS = 132  # at least, where there are tiles enough: a multiprocessor of an H100 has one


@triton.jit(do_not_specialize=SIZES)
def feed_forward_dz_kernel(
    p_x,
    p_grad,
    p_expand,
    p_taps,
    p_contract,
    p_expand_bias,
    p_depthwise_bias,
    p_scratch,
    p_dz,
    p_parts,
    channels,
    hidden,
    outputs,
    height,
    width,
    biased,
    tiles,
    split_tiles,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    SUMS: tl.constexpr,
    PIECE: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """dz = (W2^T grad) gelu'(z) for z = depthwise(W1 x + b1) + b2; sums of a split for W2, the
    taps, b2 and b3.

    p_x [B, H, W, C], p_grad [B, H, W, K], p_dz [B, H, W, D]; p_expand [D, C], p_taps [D, 1, 3, 3],
    p_contract [K, D], biases [D], of which bits of `biased` say whether they are there; p_scratch
    [programs, 2 * HALO * HIDDEN]; p_parts [splits, length] float32, see gradients.Offsets.
    Grid: splits * ceil(D / HIDDEN); one program owns split_tiles tiles and a block of hidden
    channels. Every block reads all of x, 1.7 times, and of grad; dz is written once.
    """
    channels = known_multiple(channels, MULTIPLE)
    hidden = known_multiple(hidden, MULTIPLE)
    outputs = known_multiple(outputs, MULTIPLE)
    area = height * width
    blocks = tl.cdiv(hidden, HIDDEN)
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b_channel = block * HIDDEN + tl.arange(0, HIDDEN)
    taps = load_taps(p_taps, b_channel, hidden)
    p_own = p_scratch + tl.program_id(0) * (2 * HALO * HIDDEN)
    b_bias = load_vector(p_depthwise_bias, b_channel, hidden, biased & 2)
    sums = zero_sums(PIECE, HIDDEN, SUMS // PIECE)
    tap_sums = zero_sums(COLUMNS, HIDDEN, 9)
    b_dz_sum = tl.zeros([COLUMNS, HIDDEN], tl.float32)
    grad_sums = zero_sums(1, PIECE, SUMS // PIECE)
    for number in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tiles)):
        tile = tile_at(number, height, width)
        # Two areas in turn: what is stored now is none that another thread may still load.
        p_block = p_own + number % 2 * (HALO * HIDDEN)
        p_item = p_x + tile.item * channels * area
        # Offsets that the compiler took for constants of the loop would hold registers.
        zero = hidden_zero(number)
        of_hidden = (p_expand, p_expand_bias, biased & 1, channels, hidden)
        store_halo(p_item, p_block, tile, b_channel, of_hidden, zero, CHUNK, PRECISION)
        tl.debug_barrier()
        b_z = convolved(p_block, taps, b_bias, HIDDEN)
        b_gelu, b_slope = gelu_and_slope(b_z)
        b_gelu = b_gelu.to(p_x.dtype.element_ty)
        b_pixel, in_own = own_pixels(tile)
        p_item = p_grad + tile.item * outputs * area
        b_dz = tl.zeros([OWN, HIDDEN], tl.float32)
        added = ()
        for i in tl.static_range(SUMS // PIECE):
            b_output = i * PIECE + tl.arange(0, PIECE) + zero
            b_grad = load_pixels(p_item, b_pixel, in_own, b_output, outputs, area, True)
            b_contract = load_matrix(p_contract, b_output, b_channel, outputs, hidden)
            b_dz = dot(b_grad, b_contract, b_dz, PRECISION)
            added += (dot(tl.trans(b_grad), b_gelu, sums[i], PRECISION),)
        sums = added
        if block == 0:
            grad_sums = add_channels(p_item, b_pixel, in_own, outputs, grad_sums, PIECE)
        b_dz *= b_slope
        p_pixels = p_dz + tile.item * hidden * area
        p_pixels += b_pixel[:, None] * hidden + b_channel[None, :]
        mask = in_own[:, None] & (b_channel < hidden)[None, :]
        tl.store(p_pixels, b_dz.to(p_dz.dtype.element_ty), mask=mask)
        rows = split_rows(b_dz, HIDDEN)
        tap_sums = add_tap_sums(p_block, rows, tap_sums, HIDDEN)
        b_dz_sum += rows[0] + rows[1] + (rows[2] + rows[3])
    at = offsets_of(channels, hidden, outputs)
    p_part = p_parts + split.to(tl.int64) * at.length
    for i in tl.static_range(SUMS // PIECE):
        b_output = i * PIECE + tl.arange(0, PIECE)
        store_matrix(p_part + at.contract, sums[i], b_output, b_channel, outputs, hidden)
    for tap in tl.static_range(9):
        store_sum(p_part + (at.taps + tap * hidden), tap_sums[tap], b_channel, hidden)
    store_sum(p_part + at.depthwise_bias, b_dz_sum, b_channel, hidden)
    if block == 0:
        for i in tl.static_range(SUMS // PIECE):
            b_output = i * PIECE + tl.arange(0, PIECE)
            store_sum(p_part + at.contract_bias, grad_sums[i], b_output, outputs)


@triton.jit
def add_channels(p_item, b_pixel, in_own, channels, sums, PIECE: tl.constexpr):
    """Adds to pieces [1, PIECE] of sums a tile's positions of a map [H, W, K]."""
    added = ()
    for i in tl.static_range(len(sums)):
        b_channel = i * PIECE + tl.arange(0, PIECE)
        b_map = load_pixels(p_item, b_pixel, in_own, b_channel, channels, 0, True)
        added += (sums[i] + tl.sum(b_map.to(tl.float32), axis=0)[None, :],)
    return added


@triton.jit
def store_halo(
    p_item,
    p_block,
    tile,
    b_channel,
    of_hidden,
    zero,
    CHUNK: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Stores a block of the hidden map of the halo, zero outside the map: [CELLS, HIDDEN].

    p_item [H, W, C]: x of the tile's item.
    """
    p_expand, p_bias, there, channels, hidden = of_hidden
    b_cell = tl.arange(0, HALO) + zero
    b_channel += zero
    b_pixel, in_map = halo_pixels(tile, b_cell)
    b_bias = load_vector(p_bias, b_channel, hidden, there)
    acc = tl.zeros([HALO, b_channel.shape[0]], tl.float32) + b_bias[None, :]
    for start in range(0, channels, CHUNK):
        b_chunk = start + tl.arange(0, CHUNK)
        b_x = load_pixels(p_item, b_pixel, in_map, b_chunk, channels, 0, True)
        b_expand = load_matrix(p_expand, b_channel, b_chunk, hidden, channels)
        acc = dot(b_x, tl.trans(b_expand), acc, PRECISION)
    b_hidden = tl.where(in_map[:, None], acc, 0.0).to(p_block.dtype.element_ty)
    b_number = tl.arange(0, b_channel.shape[0])
    p_cells = p_block + (b_cell[:, None] * b_channel.shape[0] + b_number[None, :])
    tl.store(p_cells, b_hidden, mask=(b_cell < CELLS)[:, None])


@triton.jit(do_not_specialize=SIZES)
def feed_forward_expand_kernel(
    p_x,
    p_dz,
    p_taps,
    p_parts,
    channels,
    hidden,
    outputs,
    height,
    width,
    biased,
    tiles,
    split_tiles,
    HIDDEN: tl.constexpr,
    SUMS: tl.constexpr,
    PIECE: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sums of a split for W1 and b1, from the gradient of the hidden map, which dz gives.

    p_x [B, H, W, C], p_dz [B, H, W, D], p_taps [D, 1, 3, 3]; p_parts [splits, length] float32, see
    gradients.Offsets.
    Grid: splits * ceil(D / HIDDEN); one program owns split_tiles tiles and a block of hidden
    channels. Every block reads all of x; dz is read once from memory, 4.5 times from the caches.
    """
    channels = known_multiple(channels, MULTIPLE)
    hidden = known_multiple(hidden, MULTIPLE)
    area = height * width
    blocks = tl.cdiv(hidden, HIDDEN)
    block, split = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    b_channel = block * HIDDEN + tl.arange(0, HIDDEN)
    taps = load_taps(p_taps, b_channel, hidden)
    sums = zero_sums(HIDDEN, PIECE, SUMS // PIECE)
    b_bias_sum = tl.zeros([OWN, HIDDEN], tl.float32)
    for number in range(split * split_tiles, tl.minimum((split + 1) * split_tiles, tiles)):
        tile = tile_at(number, height, width)
        b_pixel, in_own = own_pixels(tile)
        rows = hidden_gradient(p_dz + tile.item * hidden * area, tile, taps, b_channel, hidden)
        # Beyond the map the convolution of dz is not zero, and counts for nothing.
        b_gradient = tl.where(in_own[:, None], join_rows(rows, HIDDEN), 0.0)
        b_bias_sum += b_gradient
        b_turned = tl.trans(b_gradient.to(p_dz.dtype.element_ty))
        p_item = p_x + tile.item * channels * area
        added = ()
        for i in tl.static_range(SUMS // PIECE):
            b_input = i * PIECE + tl.arange(0, PIECE)
            b_x = load_pixels(p_item, b_pixel, in_own, b_input, channels, area, True)
            added += (dot(b_turned, b_x, sums[i], PRECISION),)
        sums = added
    at = offsets_of(channels, hidden, outputs)
    p_part = p_parts + split.to(tl.int64) * at.length
    for i in tl.static_range(SUMS // PIECE):
        b_input = i * PIECE + tl.arange(0, PIECE)
        store_matrix(p_part, sums[i], b_channel, b_input, hidden, channels)
    store_sum(p_part + at.expand_bias, b_bias_sum, b_channel, hidden)


BLOCKS = {64: 64, 128: 32, 256: 32}  # hidden channels of a block, by the channels of the sums


def sums_launch(sums: int, multiple: int, **others: int) -> Launch:
    """The launch of a kernel that sums over tiles, for so many channels of the other side."""
    constants = {"HIDDEN": BLOCKS[sums] if FOR_THREADS else INTERPRETED_HIDDEN, **others}
    constants |= {"SUMS": sums, "PIECE": 64, "MULTIPLE": multiple, "PRECISION": "tf32"}
    return Launch(constants, warps=8, registers=255)


def launches(channels: int, outputs: int, multiple: int) -> tuple[Launch, Launch]:
    """The launches of feed_forward_dz_kernel and of feed_forward_expand_kernel."""
    sums = class_of(max(channels, outputs))  # of both: they own the same blocks
    return sums_launch(sums, multiple, CHUNK=32), sums_launch(sums, multiple)


class Splits:
    """How tiles are shared among programs that own a block of hidden channels each."""

    def __init__(self, x: torch.Tensor, hidden: int, launch: Launch) -> None:
        self.tiles = tiles_of(x)
        self.blocks = triton.cdiv(hidden, launch.constants["HIDDEN"])
        splits = min(self.tiles, triton.cdiv(PROGRAMS, self.blocks))
        self.split_tiles = triton.cdiv(self.tiles, splits)
        self.splits = triton.cdiv(self.tiles, self.split_tiles)


def run_sums(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: int,
    multiple: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dz [B, H, W, D], and the sums of all splits. The maps have their channels last."""
    batch, channels, height, width = x.shape
    hidden, outputs = weights[0].shape[0], grad.shape[1]
    launch, expand_launch = launches(channels, outputs, multiple)
    splits = Splits(x, hidden, launch)
    programs = splits.splits * splits.blocks
    scratch = x.new_empty((programs, 2 * HALO.value * launch.constants["HIDDEN"]))
    dz = x.new_empty((batch, height, width, hidden))
    shape = (splits.splits, row_length(channels, hidden, outputs))
    parts = x.new_empty(shape, dtype=torch.float32)
    sizes = (channels, hidden, outputs, height, width, biased, splits.tiles, splits.split_tiles)
    arguments = (x, grad, *weights, *biases[:2], scratch, dz, parts, *sizes)
    run(feed_forward_dz_kernel, programs, *arguments, launch=launch)
    arguments = (x, dz, weights[1], parts, *sizes)
    run(feed_forward_expand_kernel, programs, *arguments, launch=expand_launch)
    return dz, parts


def aot_cases() -> list[AotCase]:
    """Every compilation that `run_sums` can ask for."""
    cases = []
    for name, sums in product(("fp16", "bf16"), CLASSES):
        for multiple in FACTORS[name]:
            if sums == MOST_CHANNELS and multiple == 1:
                continue
            names = ("x", "grad", "expand", "taps", "contract", "scratch", "dz")
            names += ("expand_bias", "depthwise_bias")
            of_dz, of_expand = launches(sums, sums, multiple)
            pointers = {f"p_{each}": name for each in names} | {"p_parts": "fp32"}
            case = AotCase(feed_forward_dz_kernel, pointers, of_dz, generations=FUSED)
            cases.append(case)
            pointers = dict.fromkeys(("p_x", "p_dz", "p_taps"), name) | {"p_parts": "fp32"}
            case = AotCase(feed_forward_expand_kernel, pointers, of_expand, generations=FUSED)
            cases.append(case)
    return cases
