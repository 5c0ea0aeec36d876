"""Triton backward of feed_forward: nothing but x is kept, the hidden map is computed again.

Of maps of hidden channels one is written, dz: the gradient of what the GELU is applied to. A kernel
makes it, one sums the gradients of the parameters over it, one makes the gradient of x from it.
Copies of contiguous maps with channels last are small beside it. Float32, and GPUs whose products
leave no registers for the sums, go step by step (steps.py).
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, generation_of, is_hopper, on_device, run
from .._multiples import known_factor, known_multiple
from .._products import dot
from .._rare import hidden_zero
from . import steps
from .forward import all_biases
from .gradients import hidden_gradient, totals
from .parameters import run_sums
from .parts import Parts, store_sums
from .tiles import (
    COLUMNS,
    FOR_THREADS,
    FUSED,
    OWN,
    ROWS,
    Cut,
    class_of,
    join_rows,
    load_matrix,
    load_taps,
    products_launch,
    tile_at,
    variants,
    zero_sums,
)


@triton.jit(
    do_not_specialize=[
        "channels",
        "hidden",
        "height",
        "width",
        "tiles",
        "splits",
        "split_blocks",
        "direct",
    ]
)
def feed_forward_input_kernel(
    p_dz,
    p_expand,
    p_taps,
    p_parts,
    p_out,
    channels,
    hidden,
    height,
    width,
    tiles,
    splits,
    split_blocks,
    direct,
    HIDDEN: tl.constexpr,
    SUMS: tl.constexpr,
    PIECE: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """grad_x = W1^T (turned depthwise convolution of dz); with splits, sums over some channels.

    p_dz [B, H, W, D], p_out [B, H, W, C]; p_expand [D, C], p_taps [D, 1, 3, 3]; p_parts
    [splits, B, H, W, C] float32, unless out is written (`direct`).
    Grid: as of feed_forward_kernel. Reads dz once from memory, 4.5 times from the caches; writes
    out once, or once a split.
    """
    channels = known_multiple(channels, MULTIPLE)
    hidden = known_multiple(hidden, MULTIPLE)
    items = tiles // (tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS))
    for unit in range(tl.program_id(0), tiles * splits, tl.num_programs(0)):
        tile = tile_at(unit // splits, height, width)
        first = unit % splits * split_blocks
        last = tl.minimum(first + split_blocks, tl.cdiv(hidden, HIDDEN))
        p_item = p_dz + tile.item * hidden * (height * width)
        sums = zero_sums(OWN, PIECE, SUMS // PIECE)
        for block in range(first, last):
            zero = hidden_zero(block)
            b_channel = block * HIDDEN + tl.arange(0, HIDDEN)
            taps = load_taps(p_taps, b_channel, hidden)
            rows = hidden_gradient(p_item, tile, taps, b_channel, hidden)
            b_gradient = join_rows(rows, HIDDEN).to(p_dz.dtype.element_ty)
            added = ()
            for i in tl.static_range(SUMS // PIECE):
                b_input = i * PIECE + tl.arange(0, PIECE) + zero
                b_expand = load_matrix(p_expand, b_channel, b_input, hidden, channels)
                added += (dot(b_gradient, b_expand, sums[i], PRECISION),)
            sums = added
        out = (p_parts, p_expand, 0, p_out)
        store_sums(sums, out, tile, (unit % splits, items, direct), channels, PIECE)


def input_launch(launch: Launch) -> Launch:
    """The launch for maps that one of feed_forward_kernel is for."""
    names = ("HIDDEN", "SUMS", "PIECE", "MULTIPLE", "PRECISION")
    constants = {name: launch.constants[name] for name in names}
    if FOR_THREADS and launch.warps == 8:  # addresses at nine distances take registers
        constants["HIDDEN"] = min(constants["HIDDEN"], 32)
    return replace(launch, constants=constants)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """grad_x like x, the gradients of the three weights, those of the biases that there are."""
    if x.dtype == torch.float32 or generation_of(x) not in FUSED:
        return steps.backward(grad, x, weights, biases, biased)
    channels, height, width = x.shape[1:]
    hidden, outputs = weights[0].shape[0], weights[2].shape[0]
    multiple = known_factor(x, channels, hidden, outputs)
    found = [torch.empty_like(each) for each in weights]
    of_biases = [torch.empty_like(each) for each in biases]
    grad_x = empty_map(x.shape, x, is_channels_inner(x))
    if not is_channels_inner(x):
        x, grad = (each.movedim(1, -1).contiguous().movedim(-1, 1) for each in (x, grad))
    with on_device(grad, x, *weights) as (grad, x, *weights):
        three, bits = all_biases(x, biases, biased)
        dz, parts = run_sums(grad, x, weights, three, bits, multiple)
        three, _bits = all_biases(x, of_biases, biased)
        totals(parts, found, three, (channels, hidden, outputs), bits)
        launch = products_launch(x.dtype, class_of(channels), is_hopper(x), True, multiple)
        launch = input_launch(launch)
        cut = Cut(x, hidden, launch)
        sums = Parts(grad_x, cut.splits)
        sizes = (channels, hidden, height, width, cut.tiles, cut.splits, cut.split_blocks)
        arguments = (dz, weights[0], weights[1], sums.sums, grad_x, *sizes, int(sums.direct))
        run(feed_forward_input_kernel, cut.programs, *arguments, launch=launch)
        sums.finish(weights[0], 0, multiple)
    return grad_x, found, of_biases


def aot_cases() -> list[AotCase]:
    """Every compilation of feed_forward_input_kernel."""
    cases = []
    for dtype in (torch.float16, torch.bfloat16):
        names = ("p_dz", "p_expand", "p_taps", "p_out")
        pointers = dict.fromkeys(names, TRITON_DTYPES[dtype]) | {"p_parts": "fp32"}
        for launch, only in variants(dtype):
            if launch.constants["INNER"]:
                where = tuple(n for n in FUSED if only is None or n in only)
                launch = input_launch(launch)
                case = AotCase(feed_forward_input_kernel, pointers, launch, generations=where)
                cases.append(case)
    return cases
