"""Tiles of maps in both layouts: which one a program owns, and where its elements are."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def owned_block(tiles, blocks, INNER: tl.constexpr):
    """Number of a program's tile of pixels, of its block of channels, and of what is left."""
    # Neighbouring programs: other channels of the same pixels, or other pixels of the channels.
    if INNER:
        tile = (tl.program_id(0) // blocks) % tiles
        block = tl.program_id(0) % blocks
    else:
        tile = tl.program_id(0) % tiles
        block = (tl.program_id(0) // tiles) % blocks
    return tile, block, tl.program_id(0) // (blocks * tiles)


@triton.jit
def tile_offsets(b_pixel, b_channel, channels, area, INNER: tl.constexpr):
    """Offsets [POSITIONS, CHANNELS] in an item of `area` pixels."""
    if INNER:
        return b_pixel.to(tl.int64)[:, None] * channels + b_channel[None, :]
    return b_channel.to(tl.int64)[None, :] * area + b_pixel[:, None]


@triton.jit
def tile_pointers(p_map, b_pixel, b_channel, channels, area, INNER: tl.constexpr):
    """Pointers [POSITIONS, CHANNELS] into an item; for loops that move them on."""
    if INNER:
        return p_map + b_pixel.to(tl.int64)[:, None] * channels + b_channel[None, :]
    return p_map + b_channel.to(tl.int64)[None, :] * area + b_pixel[:, None]
