"""How strips of a call are divided: which sizes the kernels hold in registers, tiles, scratch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import triton

from ..._layout import is_channels_inner
from .._launch import INTERPRETED, Launch, round_up

SEGNEXT = (5, 5, 7, 7, 11, 11, 21, 21)  # the published gate's sides, as sides_of has them
GROUP = 3  # strips that a kernel takes at once; SegNeXt has three
# Taps, sums of the rows that columns reach, and a row of values, an element: what the registers of
# a thread hold beside addresses.
MOST_VALUES, MOST_LOCAL_SIDE = 126, 7
STRIP_REGISTERS, BACKWARD_REGISTERS, LOCAL_REGISTERS = 168, 224, 128  # of a thread
PACKED = 32  # channels whose parameters a program brings side by side
WARPS = 1056  # that a kernel should have: two for each quarter of an H100's multiprocessors
# Whether tiles are as the threads of a GPU want them. The interpreter's time is that of programs.
FOR_THREADS = not INTERPRETED
ROWS = (16, 32, 64, 128)  # runs of rows; longer ones recompute less


def sides_of(weights: list[torch.Tensor]) -> tuple[int, ...]:
    """Height and width of the local kernel, then row and column of three strips, 0 for none."""
    height, width = weights[0].shape[2:]
    strips = [w.shape[3] if i % 2 == 0 else w.shape[2] for i, w in enumerate(weights[1:])]
    return height, width, *strips, *(0,) * (2 * GROUP - len(strips))


def held_in_registers(sides: tuple[int, ...]) -> bool:
    """Whether the kernels that walk down columns take kernels of these sides."""
    height, width, *strips = sides
    if not strips[0] or len(strips) > 2 * GROUP or max(height, width) > MOST_LOCAL_SIDE:
        return False
    return sum(strips) + max(strips[0::2]) + max(strips[1::2]) <= MOST_VALUES


@dataclass(frozen=True)
class Plan:
    """Sizes of tiles and scratch maps of a call.

    `positions`: columns of a tile, `prepared`: of one of the first kernel; `lanes`: its channels;
    `rows`: its rows; `pitch` and `padded`: columns and rows of a padded scratch map; `blocks` of
    channels; `parameters` of a channel.
    """

    sides: tuple[int, ...]
    shape: tuple[int, ...]
    inner: bool
    positions: int
    prepared: int
    lanes: int
    rows: int
    pitch: int
    padded: int
    blocks: int
    parameters: int

    @property
    def sizes(self) -> tuple[int, ...]:
        """The integers that every kernel gets."""
        return *self.shape, self.rows

    @property
    def planes(self) -> int:
        return self.shape[0] * self.blocks

    @property
    def parts(self) -> int:
        """Partial sums of a channel's tap (see store_sums)."""
        tiles = self.tiles(self.shape[3], self.positions) // self.blocks
        return tiles * (self.positions if self.lanes > 1 else 1)

    def tiles(self, columns: int, positions: int) -> int:
        """Tiles of all maps, of `columns` columns."""
        runs = triton.cdiv(self.shape[2], self.rows)
        return self.planes * runs * triton.cdiv(columns, positions)

    @property
    def packing_programs(self) -> int:
        """Programs of the first kernel that bring parameters side by side."""
        return triton.cdiv(self.shape[1], PACKED) * max(self.sides[0] * self.sides[1], *self.sides)

    def launch(self, positions: int, registers: int, **constants: bool) -> Launch:
        """That of a kernel with tiles of so many columns."""
        tile = {"POSITIONS": positions, "LANES": self.lanes, "INNER": self.inner}
        return launch_of({"SIDES": self.sides, **constants} | tile, registers)

    def local_launch(self) -> Launch:
        """That of the local convolution's backward."""
        tile = {"POSITIONS": self.positions, "LANES": self.lanes, "INNER": self.inner}
        return launch_of({"KH": self.sides[0], "KW": self.sides[1]} | tile, LOCAL_REGISTERS)


def launch_of(constants: dict[str, Any], registers: int) -> Launch:
    """A launch with an element a thread."""
    warps = constants["POSITIONS"] * constants["LANES"] // 32
    return Launch(constants, max(1, min(warps, 4)), registers=registers)


def tile_for_threads(inner: bool, width: int) -> tuple[int, int, int]:
    """Lanes, columns of a tile, and columns of a tile of the first kernel."""
    return (32, 4, 1) if inner else (1, 128 if width > 64 else 32, 32)


def plan_of(x: torch.Tensor, weights: list[torch.Tensor], sums: bool = False) -> Plan | None:
    """The Plan for maps like x, None if registers do not hold what the kernels need.

    With `sums` over the columns of tiles, contiguous ones are narrow, of one warp.
    """
    shape, inner = tuple(x.shape), is_channels_inner(x)
    return _plan_of(shape, inner, sides_of(weights), sums, FOR_THREADS, ROWS)


@lru_cache(maxsize=256)
def _plan_of(
    shape: tuple[int, ...],
    inner: bool,
    sides: tuple[int, ...],
    sums: bool,
    for_threads: bool,
    runs: tuple[int, ...],
) -> Plan | None:
    if not held_in_registers(sides):
        return None
    batch, channels, height, width = shape
    if not for_threads:
        lanes, positions, prepared, rows = min(32, triton.next_power_of_2(channels)), 64, 64, 128
    else:
        lanes, positions, prepared = tile_for_threads(inner, 0 if sums else width)
        warps = (
            triton.cdiv(channels, lanes) * triton.cdiv(width, positions) * positions * lanes / 32
        )
        wanted = batch * warps * height / WARPS
        rows = next((r for r in runs if r >= wanted), runs[-1])
    blocks = triton.cdiv(channels, lanes)
    kernels = 1 + sum(side > 0 for side in sides[2:])
    return Plan(
        sides,
        shape,
        inner,
        positions,
        prepared,
        lanes,
        rows,
        round_up(width, positions) + 2 * (max(sides[2::2]) // 2),
        height + 2 * (max(sides[3::2]) // 2) + 1,
        blocks,
        sides[0] * sides[1] + sum(sides[2:]) + kernels,
    )
