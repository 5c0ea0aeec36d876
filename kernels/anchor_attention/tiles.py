"""What forward and backward of anchor_attention share: variants, products over channels.

Rows of anchors are read where they lie. S = 110 values of a row start on 4 bytes in half precision,
on 8 in float32: that is how wide the copies are, and masks pad the rows with zeros on their way.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, Launch, is_hopper
from .._multiples import FACTORS, known_factor, known_multiple
from .._products import as_factors, before_factors, dot, dot_split, split_tf32
from .._tiles import tile_pointers

ANCHOR_CLASSES = (128, 256, 512)  # padded anchor counts that kernels are compiled for
ROW_FACTORS = {1: (1,), 4: (1, 2), 8: (1, 2, 8)}  # of rows of anchors, by the factor of maps
FEW_POSITIONS = 32768  # below, tiles of 128 positions are fewer than two per multiprocessor
FP32_REGISTERS = 192  # of a thread: what products without splitting need at most


@triton.jit
def accumulate_scores(
    p_map,
    p_anchors,
    b_position,
    positions,
    channels,
    anchors,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """map^T anchors over all channels: [POSITIONS, ANCHORS] float32, zero beyond `anchors`.

    p_map [channels, positions] (INNER: channel index fastest), p_anchors [channels, anchors].
    """
    b_channel = tl.arange(0, CHANNELS)
    b_anchor = tl.arange(0, ANCHORS)
    if PRECISION != "tf32x3":
        # There, a thread stores what it has loaded and split across rows of shared memory: runs of
        # elements would meet in the same banks.
        anchors = known_multiple(anchors, ROW_MULTIPLE)
    b_offset = b_channel[:, None] * anchors + b_anchor[None, :]
    in_map = (b_position < positions)[:, None]
    in_anchors = (b_anchor < anchors)[None, :]
    acc = tl.zeros([b_position.shape[0], ANCHORS], dtype=tl.float32)
    for start in range(0, channels, CHANNELS):
        b_own = start + b_channel
        in_channels = b_own < channels
        p_tile = tile_pointers(p_map, b_position, b_own, channels, positions, INNER)
        b_map = tl.load(p_tile, mask=in_map & in_channels[None, :], other=0.0)
        mask = in_anchors & in_channels[:, None]
        b_rows = tl.load(p_anchors + b_offset, mask=mask, other=0.0)  # [CHANNELS, ANCHORS]
        if PRECISION == "tf32x3":
            b_rows = before_factors(b_rows)
        acc = dot(b_map, b_rows, acc, PRECISION)
        p_anchors += anchors * CHANNELS
    return acc


@triton.jit
def split_factor(b_weight, PRECISION: tl.constexpr):
    """The parts of a left factor that its products with a chunk of channels take."""
    if PRECISION == "tf32x3":
        return split_tf32(b_weight)
    else:
        return b_weight, b_weight


@triton.jit
def store_products(
    factors,
    p_anchors,
    p_map,
    factor,
    tile,
    anchors,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    ROW_MULTIPLE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes factor * weight anchors^T for all channels; factors: of weight [POSITIONS, ANCHORS].

    p_anchors [channels, anchors], p_map [channels, positions] (INNER: channel index fastest).
    tile: the positions [POSITIONS], positions, channels.
    """
    b_position, positions, channels = tile
    b_channel = tl.arange(0, CHANNELS)
    b_anchor = tl.arange(0, ANCHORS)
    anchors = known_multiple(anchors, ROW_MULTIPLE)
    b_offset = b_channel[:, None] * anchors + b_anchor[None, :]
    in_map = (b_position < positions)[:, None]
    in_anchors = (b_anchor < anchors)[None, :]
    weight_high, weight_low = factors
    for start in range(0, channels, CHANNELS):
        b_own = start + b_channel
        in_channels = b_own < channels
        mask = in_anchors & in_channels[:, None]
        b_rows = tl.load(p_anchors + b_offset, mask=mask, other=0.0)  # [CHANNELS, ANCHORS]
        if PRECISION == "tf32x3":
            high, low = split_tf32(b_rows)
            b_out = dot_split(weight_high, weight_low, tl.trans(high), tl.trans(low)) * factor
        else:
            b_out = tl.dot(weight_high, tl.trans(b_rows), input_precision=PRECISION) * factor
        mask = in_map & in_channels[None, :]
        p_tile = tile_pointers(p_map, b_position, b_own, channels, positions, INNER)
        tl.store(p_tile, b_out.to(p_map.dtype.element_ty), mask=mask)
        p_anchors += anchors * CHANNELS


@triton.jit
def score_order(ANCHORS: tl.constexpr, PRECISION: tl.constexpr):
    """The anchors [ANCHORS] that the columns of a tile of scores belong to, see as_factors."""
    b_column = tl.arange(0, ANCHORS)
    if PRECISION == "tf32x3":
        return b_column // 8 * 8 + b_column % 2 * 4 + b_column % 8 // 2
    else:
        return b_column


@triton.jit
def in_order(scores, PRECISION: tl.constexpr):
    """A tile with the anchors of `score_order` in its columns, the columns brought in order."""
    if PRECISION == "tf32x3":
        return as_factors(scores)
    else:
        return scores


@triton.jit
def by_score(ordered, PRECISION: tl.constexpr):
    """What `in_order` made, as it was before."""
    if PRECISION == "tf32x3":
        return before_factors(ordered)
    else:
        return ordered


@triton.jit
def load_bias(p_bias, b_anchor, anchors, has_bias):
    """bias of one batch item in float32, -inf past the end: padding gets probability 0."""
    mask = (b_anchor < anchors) & (has_bias > 0)
    b_bias = tl.load(p_bias + b_anchor, mask=mask, other=0.0).to(tl.float32)
    return tl.where(b_anchor < anchors, b_bias, float("-inf"))


def anchor_class(anchors: int) -> int:
    """The padded anchor count that a kernel for `anchors` anchors is compiled for."""
    return next(padded for padded in ANCHOR_CLASSES if anchors <= padded)


def precision_of(dtype: torch.dtype, padded: int, hopper: bool) -> str:
    """How float32 products are formed: in three TF32 products, whose error is that of float32.

    Exactly where the parts of the probabilities would not fit the registers: of more anchors, or
    where tensor cores take both factors from there; in one TF32 product if PyTorch's own matmuls
    may use it.
    """
    if dtype != torch.float32 or torch.version.hip is not None:
        return "ieee"  # no effect on 16-bit operands
    if torch.backends.cuda.matmul.fp32_precision == "tf32":
        return "tf32"
    return "tf32x3" if padded == 128 and hopper else "ieee"


@dataclass(frozen=True)
class Tile:
    """Shape of a product into an accumulator of [rows, anchors]: `chunk` terms are read at once.

    The chunk divides the rows: tiles of positions that one kernel writes another reads in chunks.
    """

    rows: int
    chunk: int
    warps: int
    stages: int
    registers: int | None = None


@dataclass(frozen=True)
class Variant:
    """A class of inputs that kernels are compiled for.

    `factor` elements are a known divisor of the lengths of rows of maps, `row_factor` of those of
    anchors; `inner` says that maps have the channel index fastest, `hopper` what is_hopper does.
    """

    dtype: str
    anchors: int  # padded
    factor: int
    row_factor: int
    precision: str
    inner: bool
    hopper: bool

    @property
    def generations(self) -> tuple[int, ...]:
        """Major compute capabilities that the class is for."""
        return (9,) if self.hopper else (8, 10)

    def launch(self, tile: Tile, positions: int, channels: int) -> Launch:
        """The launch of a kernel whose tiles have `positions` and `channels`."""
        constants = {
            "POSITIONS": positions,
            "CHANNELS": channels,
            "ANCHORS": self.anchors,
            "INNER": self.inner,
            "MULTIPLE": self.factor,
            "ROW_MULTIPLE": self.row_factor,
            "PRECISION": self.precision,
        }
        return Launch(constants, tile.warps, tile.stages, tile.registers)


def variant_of(query: torch.Tensor, value: torch.Tensor, inner: bool) -> Variant:
    """The class that a call with maps like `query` and anchors like `value` belongs to."""
    anchors = value.shape[2]
    padded = anchor_class(anchors)
    lengths = (query.shape[1], value.shape[1]) if inner else (query.shape[2],)
    factor = known_factor(query, *lengths)
    row_factor = max(f for f in ROW_FACTORS[factor] if anchors % f == 0)
    hopper = is_hopper(query)
    precision = precision_of(query.dtype, padded, hopper)
    dtype = TRITON_DTYPES[query.dtype]
    return Variant(dtype, padded, factor, row_factor, precision, inner, hopper)


def variants(dtype: str) -> list[Variant]:
    """What kernels are compiled for."""

    def precisions(anchors: int, hopper: bool) -> tuple[str, ...]:
        if dtype != "fp32":
            return ("ieee",)
        return ("tf32x3" if anchors == 128 and hopper else "ieee", "tf32")

    flags = (False, True)
    return [
        Variant(dtype, anchors, factor, row_factor, precision, inner, hopper)
        for anchors, factor, inner, hopper in product(ANCHOR_CLASSES, FACTORS[dtype], flags, flags)
        for row_factor, precision in product(ROW_FACTORS[factor], precisions(anchors, hopper))
    ]


def tile_of(variant: Variant, few: bool) -> Tile:
    """The tile of positions for a class of inputs, for both directions; `few` says few positions.

    An accumulator takes 64 float32 registers a thread or less, and the stages of a product fit the
    99 KB of shared memory that the smallest supported GPUs have.
    """
    anchors = variant.anchors
    if variant.precision == "tf32x3":
        # Probabilities in two parts are half of the registers; single elements need more of them.
        return Tile(128, 32 if variant.row_factor > 1 else 16, 8, 2 if variant.factor > 1 else 1)
    if variant.dtype == "fp32":
        # On CUDA cores longer chunks of the operands would fill the registers.
        chunk = 16 if variant.precision == "ieee" or anchors == 512 else 32
        return Tile(8192 // anchors, chunk, 8, 2, FP32_REGISTERS)
    if variant.factor == 1:
        # Rows that do not start on 16 bytes are read element by element, through registers.
        return {128: Tile(64, 64, 8, 2), 256: Tile(32, 32, 8, 2), 512: Tile(16, 16, 8, 2)}[anchors]
    if anchors == 128:
        if few and variant.row_factor > 1 and variant.inner:
            return Tile(64, 64, 4, 3)  # twice as many programs; offsets across rows cost too much
        if variant.row_factor == 1 or not variant.hopper:
            return Tile(128, 32, 8, 3)
        # 16 KB a stage, two programs on a multiprocessor; as many stages as compile without spills
        return Tile(128, 32, 8, 3 if variant.inner and variant.row_factor > 2 else 4, 128)
    if anchors == 256:
        return Tile(64, 32, 8, 3)  # thinner chunks: the anchors are 16 KB of a 20 KB stage
    return Tile(32, 32, 8, 2)  # 34 KB a stage


def gradient_tile_of(variant: Variant) -> Tile:
    """The tile for sums over positions: rows are channels, chunks are of positions."""
    tile = tile_of(variant, False)
    if variant.dtype == "fp32" or variant.factor == 1:
        return tile
    # Writing 64 values a thread would take 200 registers.
    chunk = {128: 64, 256: 32, 512: 32}[variant.anchors]
    return Tile(tile.rows, chunk, 16, {128: 3, 256: 3, 512: 2}[variant.anchors])
