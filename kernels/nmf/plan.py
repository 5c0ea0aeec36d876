"""How the work of nmf is cut up: splits of positions, parts of channels, tiles, launches.

How sums are split depends on the compute capability alone, not on the number of multiprocessors, so
that results are the same on every device of a generation.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
import triton

from .._launch import generation_of, round_up
from .._multiples import known_factor

RANK_CLASSES = (16, 64, 128)  # padded numbers of bases that kernels are compiled for
MAX_RANK = RANK_CLASSES[-1]
# Pieces of the positions, about: two for each multiprocessor of the largest GPUs.
UNITS = 256
BLOCK, PARTS = 256, 32  # elements of a table of sums, and tables, that are added up at once


@dataclass(frozen=True)
class Shape:
    """For a number of bases: positions of a tile, channels of a chunk, warps.

    `rows`: channels whose bases are updated at once; those of a chunk are a multiple.
    """

    tile: int
    chunk: int
    rows: int
    warps: int


SHAPES = {16: Shape(32, 64, 32, 4), 64: Shape(32, 64, 32, 4), 128: Shape(16, 32, 16, 8)}
# Elsewhere products have both factors in registers, and rows that start anywhere need an address an
# element: the larger tiles would not fit.
LARGE_GENERATIONS, SMALL_GENERATIONS = (9, 10), (8, 12)  # major compute capabilities
SMALL_SHAPES = SHAPES | {64: Shape(16, 32, 16, 4)}
SMALL_RANK = 64


def shapes_of(padded: int, multiple: int) -> list[tuple[Shape, tuple[int, ...] | None]]:
    """Shapes of kernels that read the map, and the compute capabilities they are for, None: all.

    multiple: what factor_of gives.
    """
    if padded > SMALL_RANK:
        return [(SHAPES[padded], LARGE_GENERATIONS)]
    small = SMALL_SHAPES[padded]
    if multiple == 1 or SHAPES[padded] == small:
        return [(small, None)]
    return [(SHAPES[padded], LARGE_GENERATIONS), (small, SMALL_GENERATIONS)]


def bases_shapes_of(padded: int, multiple: int) -> list[tuple[Shape, tuple[int, ...] | None]]:
    """The same of kernels that read the bases alone, whose rows are of `multiple`: beside a map
    with other rows than theirs, they have the small shape everywhere."""
    found = shapes_of(padded, multiple)
    return found if len(found) == 1 else [found[0], (found[1][0], None)]


def rank_class(rank: int) -> int:
    """The padded number of bases that a kernel for `rank` bases is compiled for."""
    return next(padded for padded in RANK_CLASSES if rank <= padded)


def factor_of(x: torch.Tensor, rank: int, inner: bool) -> int:
    """What the lengths of rows of the map and of the coefficients are multiples of."""
    return known_factor(x, x.shape[1 if inner else 2], rank)


def is_small(x: torch.Tensor) -> bool:
    """Whether the device of a map is one for SMALL_SHAPES."""
    return generation_of(x) not in (*LARGE_GENERATIONS, None)


@dataclass(frozen=True)
class Plan:
    """The pieces of one call."""

    items: int
    channels: int
    positions: int
    rank: int
    small: bool  # whether it is one for SMALL_SHAPES

    @classmethod
    def of(cls, x: torch.Tensor, rank: int, multiple: int) -> Plan:
        """For a map [items, channels, positions]; multiple: its factor_of."""
        return cls(*x.shape, rank, is_small(x) or multiple == 1)

    @cached_property
    def padded(self) -> int:
        return rank_class(self.rank)

    @cached_property
    def shape(self) -> Shape:
        return (SMALL_SHAPES if self.small else SHAPES)[self.padded]

    @cached_property
    def width(self) -> int:
        """Channels, padded for the kernels' own matrices."""
        return round_up(self.channels, self.shape.chunk)

    @property
    def parts(self) -> int:
        return self.width // self.shape.rows

    @cached_property
    def tiles(self) -> int:
        """Tiles of a split; an even number where the forward takes two at once."""
        tiles = triton.cdiv(self.positions, self.shape.tile)
        tiles = triton.cdiv(tiles, max(1, UNITS // max(self.items, 1)))
        return round_up(tiles, 2) if tiles > 1 and self.padded > SMALL_RANK else tiles

    @cached_property
    def splits(self) -> int:
        return triton.cdiv(self.positions, self.shape.tile * self.tiles)

    @property
    def single(self) -> bool:
        """Whether a program keeps the coefficients of its only tile in registers."""
        return self.tiles == 1

    @property
    def keeps_gradients(self) -> bool:
        """Whether it keeps their gradients, too."""
        return self.single and not (self.small and self.padded == SMALL_RANK)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What every kernel gets of it, in this order."""
        return self.channels, self.positions, self.rank, self.width

    @property
    def table(self) -> int:
        """Elements of the sums that an update of the bases needs."""
        return (self.width + self.padded) * self.padded

    def empty(self, like: torch.Tensor, *shape: int) -> torch.Tensor:
        return like.new_empty(self.items, *shape, dtype=torch.float32)
