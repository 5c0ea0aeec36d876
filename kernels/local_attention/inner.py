"""Maps as kernels on tiles read them: channels inner, rows padded to 16 bytes; and back.

A position's channels lie H*W apart in a contiguous map, and neighbours a dilation apart: no access
of a window is wide. Nor is one of a row that does not start on 16 bytes. One launch copies all maps
of a call, 2 * B * H * W elements a channel; copies of maps up to the size of the second-level cache
stay there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, round_up, run
from .._multiples import FACTORS, known_factor, known_multiple

SIDE = 64  # positions and channels of a program


@triton.jit(
    do_not_specialize=["positions", "key_channels", "value_channels", "keys", "values"],
)
def copy_maps_kernel(
    p_0,
    p_1,
    p_2,
    p_3,
    p_out_0,
    p_out_1,
    p_out_2,
    p_out_3,
    positions,
    key_channels,
    value_channels,
    keys,
    values,
    SIDE: tl.constexpr,
    PADDING: tl.constexpr,
    PADS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """Copies maps to rows of channels, padded with zeros (PADS), or rows back to maps.

    The first `keys` of the four have key_channels, the next `values` of them value_channels; the
    others are not touched. Maps [B, channels, positions], or with INNER [B, positions, channels];
    rows [B, positions, channels rounded up to a multiple of PADDING].
    Grid: B * ceil(positions / SIDE) * sum over maps of ceil(channels / SIDE); one program owns SIDE
    positions and channels of one map. Reads and writes every element once.
    """
    key_blocks, value_blocks = tl.cdiv(key_channels, SIDE), tl.cdiv(value_channels, SIDE)
    blocks = keys * key_blocks + values * value_blocks
    block = tl.program_id(0) % blocks
    tile = tl.program_id(0) // blocks
    tiles = tl.cdiv(positions, SIDE)
    batch = (tile // tiles).to(tl.int64)
    number, channels = block // key_blocks, key_channels
    if block >= keys * key_blocks:
        block -= keys * key_blocks
        number, channels = keys + block // value_blocks, value_channels
        block = block % value_blocks
    else:
        block = block % key_blocks
    p_map, p_out = p_0, p_out_0
    if number == 1:
        p_map, p_out = p_1, p_out_1
    if number == 2:
        p_map, p_out = p_2, p_out_2
    if number == 3:
        p_map, p_out = p_3, p_out_3
    channels = known_multiple(channels, MULTIPLE)
    positions = known_multiple(positions, MULTIPLE)
    padded = tl.cdiv(channels, PADDING) * PADDING
    b_position = (tile % tiles) * SIDE + tl.arange(0, SIDE)
    b_channel = block * SIDE + tl.arange(0, SIDE)
    item = batch * positions
    if INNER:
        p_tile = (item + b_position)[:, None] * channels + b_channel[None, :]
        valid = (b_position < positions)[:, None] & (b_channel < channels)[None, :]
    else:
        p_tile = (batch * channels + b_channel)[:, None] * positions + b_position[None, :]
        valid = (b_channel < channels)[:, None] & (b_position < positions)[None, :]
    p_rows = (item + b_position)[:, None] * padded + b_channel[None, :]
    if PADS:
        b_tile = tl.load(p_map + p_tile, mask=valid, other=0.0)
        if not INNER:
            b_tile = tl.trans(b_tile)
        stored = (b_position < positions)[:, None] & (b_channel < padded)[None, :]
        tl.store(p_out + p_rows, b_tile, mask=stored)
    else:
        inside = (b_position < positions)[:, None] & (b_channel < channels)[None, :]
        b_tile = tl.load(p_map + p_rows, mask=inside, other=0.0)
        if not INNER:
            b_tile = tl.trans(b_tile)
        tl.store(p_out + p_tile, b_tile, mask=valid)


def copy_launch(dtype: str, pads: bool, inner: bool, multiple: int) -> Launch:
    padding = FACTORS[dtype][-1]
    constants = {"SIDE": SIDE, "PADDING": padding, "PADS": pads, "INNER": inner}
    constants["MULTIPLE"] = multiple
    return Launch(constants, warps=4)


def padding_of(x: torch.Tensor) -> int:
    """Elements in 16 bytes."""
    return 16 // x.element_size()


def needs_copies(query: torch.Tensor, value: torch.Tensor) -> bool:
    """Whether maps in the layout of `query` are not such rows already."""
    aligned = known_factor(query, query.shape[1], value.shape[1]) == padding_of(query)
    return not (is_channels_inner(query) and aligned)


def padded_map(x: torch.Tensor) -> torch.Tensor:
    """A new map for `x` [B, C, H, W] with more channels, which are inner."""
    batch, channels, height, width = x.shape
    return empty_map((batch, round_up(channels, padding_of(x)), height, width), x, True)


def copy_maps(
    maps: Sequence[torch.Tensor], rows: Sequence[torch.Tensor], keys: int, pads: bool
) -> None:
    """Copies up to four maps [B, C, H, W] to the padded `rows`, or the rows to the maps.

    The first `keys` maps have as many channels as the first one, the others as the last one.
    """
    first, last = maps[0], maps[-1]
    batch, key_channels, height, width = first.shape
    value_channels, values = last.shape[1], len(maps) - keys
    blocks = keys * triton.cdiv(key_channels, SIDE) + values * triton.cdiv(value_channels, SIDE)
    multiple = known_factor(first, height * width, key_channels, value_channels)
    sources, outs = (maps, rows) if pads else (rows, maps)
    spare = 4 - len(maps)
    run(
        copy_maps_kernel,
        batch * triton.cdiv(height * width, SIDE) * blocks,
        *sources,
        *[sources[0]] * spare,
        *outs,
        *[outs[0]] * spare,
        height * width,
        key_channels,
        value_channels,
        keys,
        values,
        launch=copy_launch(TRITON_DTYPES[first.dtype], pads, is_channels_inner(first), multiple),
    )


def padded_copies(maps: Sequence[torch.Tensor], keys: int) -> list[torch.Tensor]:
    """The maps as rows for kernels on tiles."""
    rows = [padded_map(x) for x in maps]
    copy_maps(maps, rows, keys, True)
    return rows


def copy_cases() -> list[AotCase]:
    """Every compilation that the copies can ask for."""
    names = [f"{name}_{number}" for name in ("p", "p_out") for number in range(4)]
    return [
        AotCase(
            copy_maps_kernel, dict.fromkeys(names, dtype), copy_launch(dtype, pads, inner, multiple)
        )
        for dtype in TRITON_DTYPES.values()
        for pads in (True, False)
        for inner in (True, False)
        for multiple in FACTORS[dtype]
    ]
