"""Sums over positions in nmf, and how the work is cut up: groups of items, slabs, splits.

Half precision maps are widened to float32, a few batch items at a time: every step reads them, and
products on CUDA cores take longer than reading four bytes instead of two.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
import triton
import triton.language as tl

from .._launch import AotCase, Launch, round_up, run
from .sums_products import accumulate_rows

RANK_CLASSES = (16, 32, 64, 128)  # padded numbers of bases that kernels are compiled for
MAX_RANK = RANK_CLASSES[-1]
CHUNK = 16  # terms of a product that are read at once
# Programs of the sums over positions, about: two for each multiprocessor of the largest GPUs.
# Fixed, not asked of the device, so that sums are split the same way everywhere.
SUM_PROGRAMS = 256
MIN_SPLIT = 256  # positions that are worth a partial sum of their own
MAX_PARTS = 16  # programs that share the bases of an item
# Items are worked on together as long as their maps fit the level-2 cache, and larger ones are cut
# into slabs of positions: the second reading of a map in a step comes out of the cache.
CACHED_BYTES = 24 << 20
SLAB_MULTIPLE = 128


@triton.jit(
    do_not_specialize=[
        "positions",
        "channels",
        "rank",
        "first",
        "last",
        "splits",
        "split_positions",
        "rows",
        "add",
    ],
    do_not_specialize_on_alignment=["p_x", "p_weight", "p_left", "p_right"],
)
def nmf_sums_kernel(
    p_x,
    p_weight,
    p_left,
    p_right,
    p_sums,
    positions,
    channels,
    rank,
    first,
    last,
    splits,
    split_positions,
    rows,
    add,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    RANK: tl.constexpr,
    INNER: tl.constexpr,
):
    """sums[split] (+)= [x weight; left^T right], summed over the split's part of [first, last).

    p_x [items, D, N]: contiguous, or with INNER the channel index fastest. p_weight, p_left,
    p_right [items, N, rank]. p_sums [items, splits, rows, RANK]: D rows of the first product,
    padded to a multiple of CHANNELS, then those of the second, padded likewise; set, or with `add`
    added to.
    Grid: items * splits * rows / CHANNELS; one program owns CHANNELS rows of one split of one item.
    Reads x once (out of the level-2 cache, where it is left by the update of the coefficients) and
    the coefficients D / CHANNELS times.
    Source: the numerators and denominators of algorithm 1 of Geng et al. (ICLR 2021).
    """
    blocks = rows // CHANNELS
    block = tl.program_id(0) % blocks
    split = (tl.program_id(0) // blocks) % splits
    item = (tl.program_id(0) // (blocks * splits)).to(tl.int64)
    x_blocks = tl.cdiv(channels, CHANNELS)
    begin = first + split * split_positions
    end = tl.minimum(begin + split_positions, last)
    b_row = tl.arange(0, CHANNELS)
    if block < x_blocks:
        acc = accumulate_rows(
            p_x + item * channels * positions,
            p_weight + item * positions * rank,
            block * CHANNELS + b_row,
            begin,
            end,
            positions,
            channels,
            rank,
            CHANNELS,
            CHUNK,
            RANK,
            INNER,
        )
    else:
        acc = accumulate_rows(
            p_left + item * positions * rank,
            p_right + item * positions * rank,
            (block - x_blocks) * CHANNELS + b_row,
            begin,
            end,
            positions,
            rank,
            rank,
            CHANNELS,
            CHUNK,
            RANK,
            True,
        )
    p_out = p_sums + ((item * splits + split) * rows + block * CHANNELS + b_row[:, None]) * RANK
    p_out += tl.arange(0, RANK)[None, :]
    if add:
        acc += tl.load(p_out)
    tl.store(p_out, acc)


@dataclass(frozen=True)
class Tile:
    """Positions of a tile of coefficients, channels (or rows of a square) of a sum."""

    positions: int
    channels: int
    warps: int


# An accumulator takes 32 float32 registers a thread or less.
TILES = {
    16: Tile(64, 64, 4),
    32: Tile(32, 64, 4),
    64: Tile(32, 64, 4),
    128: Tile(16, 64, 8),
}


def rank_class(rank: int) -> int:
    """The padded number of bases that a kernel for `rank` bases is compiled for."""
    return next(padded for padded in RANK_CLASSES if rank <= padded)


def tables_at_once(padded: int) -> int:
    """How many tables [CHUNK, RANK] a program has in flight: 64 registers a thread or less."""
    return 512 // padded


def sums_launch(padded: int, inner: bool) -> Launch:
    tile = TILES[padded]
    constants = {"CHANNELS": tile.channels, "CHUNK": CHUNK, "RANK": padded, "INNER": inner}
    return Launch(constants, tile.warps, stages=3, registers=255)


@dataclass(frozen=True)
class Group:
    """A few batch items that are worked on together, and how their sums are split.

    Sums over positions are in `splits` partial ones for every slab, those over channels in `parts`
    of `share` channels.
    """

    items: int
    channels: int
    positions: int
    rank: int
    inner: bool

    @cached_property
    def padded(self) -> int:
        return rank_class(self.rank)

    @cached_property
    def tile(self) -> Tile:
        return TILES[self.padded]

    @cached_property
    def slab_positions(self) -> int:
        fitting = CACHED_BYTES // (4 * self.channels * self.items)
        if fitting >= self.positions:
            return self.positions
        return max(SLAB_MULTIPLE, fitting // SLAB_MULTIPLE * SLAB_MULTIPLE)

    @cached_property
    def square_row(self) -> int:
        """The row of a table of sums at which the second product begins."""
        return round_up(self.channels, self.tile.channels)

    @cached_property
    def rows(self) -> int:
        return self.square_row + round_up(self.padded, self.tile.channels)

    @cached_property
    def splits(self) -> int:
        wanted = triton.cdiv(SUM_PROGRAMS, self.rows // self.tile.channels * self.items)
        return max(1, min(wanted, self.slab_positions // MIN_SPLIT))

    @cached_property
    def share(self) -> int:
        return round_up(triton.cdiv(self.channels, MAX_PARTS), CHUNK)

    @cached_property
    def parts(self) -> int:
        return triton.cdiv(self.channels, self.share)

    @property
    def sizes(self) -> tuple[int, ...]:
        """What the kernels of the bases' updates get of it, in this order."""
        table = (self.rows, self.square_row, self.splits)
        return self.channels, self.rank, *table, self.parts, self.share

    def slab_sizes(self, slab: tuple[int, int]) -> tuple[int, ...]:
        """What the kernels of the coefficients' updates get of it, in this order."""
        first, tiles = slab[0] // self.tile.positions, self.tiles_of(slab)
        return self.positions, self.channels, self.rank, first, tiles, self.parts

    def tiles_of(self, slab: tuple[int, int]) -> int:
        return triton.cdiv(slab[1] - slab[0], self.tile.positions)

    def slabs(self) -> Iterator[tuple[int, int]]:
        """The first position and the end of each slab."""
        for first in range(0, self.positions, self.slab_positions):
            yield first, min(first + self.slab_positions, self.positions)

    def new_sums(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(self.items, self.splits, self.rows, self.padded)

    def new_squares(self, like: torch.Tensor) -> torch.Tensor:
        return like.new_empty(self.items, self.parts, self.padded, self.padded)

    def sum_slab(
        self,
        x: torch.Tensor,
        weight: torch.Tensor,
        left: torch.Tensor,
        right: torch.Tensor,
        sums: torch.Tensor,
        slab: tuple[int, int],
    ) -> None:
        """The slab's share of x weight and of left^T right, to the table of sums."""
        first, last = slab
        run(
            nmf_sums_kernel,
            self.items * self.splits * self.rows // self.tile.channels,
            x,
            weight,
            left,
            right,
            sums,
            self.positions,
            self.channels,
            self.rank,
            first,
            last,
            self.splits,
            triton.cdiv(last - first, self.splits),
            self.rows,
            int(first > 0),
            launch=sums_launch(self.padded, self.inner),
        )


def groups_of(
    x: torch.Tensor, rank: int, inner: bool
) -> Iterator[tuple[slice, torch.Tensor, Group]]:
    """Runs of batch items whose maps fit the cache: their slice, their maps in float32, sizes."""
    batch, channels, positions = x.shape
    step = max(1, CACHED_BYTES // (4 * channels * positions))
    for first in range(0, batch, step):
        items = slice(first, min(first + step, batch))
        group = Group(items.stop - first, channels, positions, rank, inner)
        yield items, x[items].float(), group


def sums_cases() -> list[AotCase]:
    """Every compilation that the sums over positions can ask for."""
    names = ("p_x", "p_weight", "p_left", "p_right", "p_sums")
    return [
        AotCase(nmf_sums_kernel, dict.fromkeys(names, "fp32"), sums_launch(padded, inner))
        for padded in RANK_CLASSES
        for inner in (False, True)
    ]
