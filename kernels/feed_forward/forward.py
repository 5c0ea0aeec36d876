"""Triton forward of feed_forward: the hidden map passes through scratch, a block at a time.

Source: Guo et al., SegNeXt (NeurIPS 2022), figure 2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._gelu import gelu
from .._launch import (
    TRITON_DTYPES,
    AotCase,
    aligned_storage,
    is_hopper,
    on_device,
    refuse_tensor,
    round_up,
    run,
)
from .._multiples import known_factor, known_multiple
from .._products import dot
from .._rare import hidden_zero
from .parts import Parts, store_sums
from .tiles import (
    COLUMNS,
    HALO,
    OWN,
    ROWS,
    SIZES,
    Cut,
    begin_tile,
    class_of,
    convolved,
    load_matrix,
    load_taps,
    load_vector,
    products_launch,
    refuse_channels,
    store_hidden,
    tile_at,
    variants,
    zero_sums,
)


@triton.jit(do_not_specialize=[*SIZES, "padded", "tiles", "splits", "split_blocks", "direct"])
def feed_forward_kernel(
    p_x,
    p_expand,
    p_taps,
    p_contract,
    p_expand_bias,
    p_depthwise_bias,
    p_contract_bias,
    p_scratch,
    p_parts,
    p_out,
    channels,
    hidden,
    outputs,
    height,
    width,
    biased,
    padded,
    tiles,
    splits,
    split_blocks,
    direct,
    HIDDEN: tl.constexpr,
    CHUNK: tl.constexpr,
    SUMS: tl.constexpr,
    PIECE: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """out = W2 gelu(depthwise(W1 x + b1) + b2) + b3; with splits, sums over some hidden channels.

    p_x [B, C, H, W], p_out [B, K, H, W], or channels last with INNER; p_expand [D, C], p_taps
    [D, 1, 3, 3], p_contract [K, D]; biases [D], [D], [K], of which bits of `biased` say whether
    they are there; p_scratch [programs, HALO * (padded + 2 * HIDDEN)]; p_parts [splits, B, H, W, K]
    float32, written unless out is written (`direct`).
    Grid: programs that take every so many-th of tiles * splits units; a unit is a tile of positions
    and split_blocks blocks of hidden channels. A tile reads its part of x, 1.7 times what it owns,
    and all weights (out of the caches), and passes 1.7 times its hidden channels through scratch;
    out is written once, or once a split.
    """
    channels = known_multiple(channels, MULTIPLE)
    hidden = known_multiple(hidden, MULTIPLE)
    outputs = known_multiple(outputs, MULTIPLE)
    padded = known_multiple(padded, CHUNK)
    area = height * width
    p_copy = p_scratch + tl.program_id(0).to(tl.int64) * (HALO * (padded + 2 * HIDDEN))
    for unit in range(tl.program_id(0), tiles * splits, tl.num_programs(0)):
        tl.debug_barrier()  # threads may still be reading scratch of the tile before
        tile = tile_at(unit // splits, height, width)
        first = unit % splits * split_blocks
        last = tl.minimum(first + split_blocks, tl.cdiv(hidden, HIDDEN))
        p_item = p_x + tile.item * channels * area
        begin_tile(p_item, p_copy, tile, channels, padded, area, HIDDEN, CHUNK, INNER)
        tl.debug_barrier()
        sums = zero_sums(OWN, PIECE, SUMS // PIECE)
        for block in range(first, last):
            # Offsets that the compiler took for constants of the loop would hold registers.
            zero = hidden_zero(block)
            b_channel = block * HIDDEN + tl.arange(0, HIDDEN)
            # Two areas in turn: what is stored now is none that another thread may still load.
            p_hidden = p_copy + HALO * (padded + block % 2 * HIDDEN)
            b_bias = load_vector(p_expand_bias, b_channel, hidden, biased & 1)
            of_hidden = (channels, hidden, padded)
            store_hidden(
                p_copy,
                p_expand,
                b_bias,
                p_hidden,
                tile,
                b_channel,
                of_hidden,
                zero,
                CHUNK,
                PRECISION,
            )
            tl.debug_barrier()
            taps = load_taps(p_taps, b_channel, hidden)
            b_bias = load_vector(p_depthwise_bias, b_channel, hidden, biased & 2)
            b_gelu = gelu(convolved(p_hidden, taps, b_bias, HIDDEN)).to(p_out.dtype.element_ty)
            added = ()
            for i in tl.static_range(SUMS // PIECE):
                b_output = i * PIECE + tl.arange(0, PIECE) + zero
                b_contract = load_matrix(p_contract, b_output, b_channel, outputs, hidden)
                added += (dot(b_gelu, tl.trans(b_contract), sums[i], PRECISION),)
            sums = added
        items = tiles // (tl.cdiv(height, ROWS) * tl.cdiv(width, COLUMNS))
        out = (p_parts, p_contract_bias, biased & 4, p_out)
        store_sums(sums, out, tile, (unit % splits, items, direct), outputs, PIECE)


def all_biases(
    like: torch.Tensor, biases: Sequence[torch.Tensor], biased: Sequence[int]
) -> tuple[list[torch.Tensor], int]:
    """The three biases, `like` where there is none, and which there are, as bits."""
    given = dict(zip(biased, map(aligned_storage, biases), strict=True))
    return [given.get(i, like) for i in range(3)], sum(1 << i for i in biased)


def forward(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor]:
    """out [B, K, H, W] in the layout of x [B, C, H, W]."""
    batch, channels, height, width = x.shape
    hidden, outputs = weights[0].shape[0], weights[2].shape[0]
    inner = is_channels_inner(x)
    out = empty_map((batch, outputs, height, width), x, inner)
    multiple = known_factor(x, channels, hidden, outputs)
    launch = products_launch(x.dtype, class_of(outputs), is_hopper(x), inner, multiple)
    cut = Cut(x, hidden, launch)
    padded = round_up(channels, launch.constants["CHUNK"])
    # of x, and two blocks of the hidden map
    scratch = x.new_empty((cut.programs, HALO.value * (padded + 2 * cut.block)))
    parts = Parts(out, cut.splits)
    with on_device(x, *weights) as (x, *weights):
        three, bits = all_biases(x, biases, biased)
        run(
            feed_forward_kernel,
            cut.programs,
            x,
            *weights,
            *three,
            scratch,
            parts.sums,
            out,
            channels,
            hidden,
            outputs,
            height,
            width,
            bits,
            padded,
            cut.tiles,
            cut.splits,
            cut.split_blocks,
            int(parts.direct),
            launch=launch,
        )
        parts.finish(three[2], bits & 4, multiple)
    return (out,)


def refuse(x: torch.Tensor, weights: list[torch.Tensor], *biases: object) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    expand, depthwise, contract = weights
    sides = tuple(depthwise.shape[2:])
    if sides != (3, 3):
        return f"triton: a depthwise kernel of {sides[0]}x{sides[1]}: expected 3x3"
    batch, _, height, width = x.shape
    if batch * height * width * max(*expand.shape, contract.shape[0]) >= 2**31:
        return "triton: B*H*W times the channels must be below 2**31"
    reason = refuse_tensor(x)
    if reason is None:
        most = max(x.shape[1], contract.shape[0])
        aligned = known_factor(x, x.shape[1], contract.shape[0], expand.shape[0]) > 1
        reason = refuse_channels(x, most, aligned)
    return reason


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = []
    for dtype, name in TRITON_DTYPES.items():
        names = ("p_x", "p_expand", "p_taps", "p_contract", "p_scratch", "p_out")
        pointers = dict.fromkeys(names, name)
        pointers |= {f"p_{which}_bias": name for which in ("expand", "depthwise", "contract")}
        pointers["p_parts"] = "fp32"
        for launch, only in variants(dtype):
            cases.append(AotCase(feed_forward_kernel, pointers, launch, generations=only))
    return cases
