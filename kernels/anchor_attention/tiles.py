"""What forward and backward of anchor_attention share: packed anchors, products over channels."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, round_up, run
from .._multiples import FACTORS, known_factor
from .._tiles import tile_pointers

ANCHOR_CLASSES = (128, 256, 512)  # padded anchor counts that kernels are compiled for
CHANNEL_MULTIPLE = 128  # packed anchors have zero rows up to this multiple: no masks on them
FP32_REGISTERS = 168  # of a thread: what the products on CUDA cores need at most
PACK_ELEMENTS = 2048  # of a program: 16 a thread


@triton.jit(
    do_not_specialize=["anchors", "key_channels", "value_channels", "key_rows", "value_rows"],
    do_not_specialize_on_alignment=["p_key", "p_value", "p_bias"],  # read element by element
)
def pack_anchors_kernel(
    p_key,
    p_value,
    p_bias,
    p_packed_key,
    p_packed_value,
    p_packed_bias,
    anchors,
    key_channels,
    value_channels,
    key_rows,
    value_rows,
    HAS_BIAS: tl.constexpr,
    ANCHORS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Copies the anchors into aligned, zero-padded tables that need no mask.

    A row of 110 bf16 values starts on 16 bytes only every fourth time, so reading the caller's
    tensors tile by tile would take single-element loads; the copy is read by every program.

    p_key [B, Ck, S], p_value [B, Cv, S], p_bias [B, S] or unused: contiguous.
    p_packed_key [B, key_rows, ANCHORS], p_packed_value [B, value_rows, ANCHORS]: zeros outside.
    p_packed_bias [B, ANCHORS] float32: -inf outside, so padding anchors get probability 0.
    Grid: B * (key_rows + value_rows) / ROWS; one program owns ROWS rows of one table.
    Moves the anchors once: S * (Ck + Cv) elements a batch item.
    """
    blocks = (key_rows + value_rows) // ROWS
    batch = (tl.program_id(0) // blocks).to(tl.int64)
    block = tl.program_id(0) % blocks
    b_anchor = tl.arange(0, ANCHORS)
    b_row = tl.arange(0, ROWS)
    inside = (b_anchor < anchors)[None, :]
    if block * ROWS < key_rows:
        row = block * ROWS + b_row
        source = p_key + (batch * key_channels + row[:, None]) * anchors + b_anchor[None, :]
        b_key = tl.load(source, mask=inside & (row < key_channels)[:, None], other=0.0)
        target = p_packed_key + (batch * key_rows + row[:, None]) * ANCHORS + b_anchor[None, :]
        tl.store(target, b_key)
    else:
        row = block * ROWS - key_rows + b_row
        source = p_value + (batch * value_channels + row[:, None]) * anchors + b_anchor[None, :]
        b_value = tl.load(source, mask=inside & (row < value_channels)[:, None], other=0.0)
        target = p_packed_value + (batch * value_rows + row[:, None]) * ANCHORS + b_anchor[None, :]
        tl.store(target, b_value)
    if block == 0:
        b_bias = tl.zeros([ANCHORS], dtype=tl.float32)
        if HAS_BIAS:
            b_bias = tl.load(
                p_bias + batch * anchors + b_anchor, mask=b_anchor < anchors, other=0.0
            )
        b_bias = tl.where(b_anchor < anchors, b_bias.to(tl.float32), float("-inf"))
        tl.store(p_packed_bias + batch * ANCHORS + b_anchor, b_bias)


@triton.jit
def accumulate_scores(
    p_map,
    p_packed,
    b_position,
    positions,
    channels,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """map^T packed over all channels: [POSITIONS, ANCHORS] float32.

    p_map [channels, positions] (INNER: channel index fastest), p_packed [rows, ANCHORS].
    """
    b_channel = tl.arange(0, CHANNELS)
    b_anchor = tl.arange(0, ANCHORS)
    p_tile = tile_pointers(p_map, b_position, b_channel, channels, positions, INNER)
    p_rows = p_packed + b_channel[:, None] * ANCHORS + b_anchor[None, :]
    in_map = (b_position < positions)[:, None]
    acc = tl.zeros([b_position.shape[0], ANCHORS], dtype=tl.float32)
    for start in range(0, channels, CHANNELS):
        mask = in_map & (start + b_channel < channels)[None, :]
        b_map = tl.load(p_tile, mask=mask, other=0.0)  # [POSITIONS, CHANNELS]
        b_rows = tl.load(p_rows)  # [CHANNELS, ANCHORS]
        acc = tl.dot(b_map, b_rows, acc, input_precision=PRECISION)
        if INNER:
            p_tile += CHANNELS
        else:
            p_tile += positions.to(tl.int64) * CHANNELS
        p_rows += CHANNELS * ANCHORS
    return acc


@triton.jit
def store_products(
    b_weight,
    p_packed,
    p_map,
    factor,
    tile,
    CHANNELS: tl.constexpr,
    ANCHORS: tl.constexpr,
    INNER: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Writes factor * weight packed^T for all channels; b_weight [POSITIONS, ANCHORS].

    p_packed [rows, ANCHORS], p_map [channels, positions] (INNER: channel index fastest).
    tile: the positions [POSITIONS], positions, channels.
    """
    b_position, positions, channels = tile
    b_channel = tl.arange(0, CHANNELS)
    b_anchor = tl.arange(0, ANCHORS)
    p_tile = tile_pointers(p_map, b_position, b_channel, channels, positions, INNER)
    p_rows = p_packed + b_channel[:, None] * ANCHORS + b_anchor[None, :]
    in_map = (b_position < positions)[:, None]
    for start in range(0, channels, CHANNELS):
        b_rows = tl.load(p_rows)  # [CHANNELS, ANCHORS]
        b_out = tl.dot(b_weight, tl.trans(b_rows), input_precision=PRECISION) * factor
        mask = in_map & (start + b_channel < channels)[None, :]
        tl.store(p_tile, b_out.to(p_map.dtype.element_ty), mask=mask)
        if INNER:
            p_tile += CHANNELS
        else:
            p_tile += positions.to(tl.int64) * CHANNELS
        p_rows += CHANNELS * ANCHORS


def anchor_class(anchors: int) -> int:
    """The padded anchor count that a kernel for `anchors` anchors is compiled for."""
    return next(padded for padded in ANCHOR_CLASSES if anchors <= padded)


def precision_of(dtype: torch.dtype) -> str:
    """How float32 products are formed: exactly, unless PyTorch's own matmuls may use TF32."""
    if dtype != torch.float32:
        return "ieee"  # no effect on 16-bit operands
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


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


def tile_of(dtype: str, anchors: int, multiple: int, precision: str) -> Tile:
    """The tile for a class of inputs, for all kernels and both directions.

    An accumulator takes 64 float32 registers a thread or less, and the stages of a product fit the
    99 KB of shared memory that the smallest supported GPUs have. Forward and backward use the same
    chunk, so that the recomputed scores are those that the log-sum-exp was taken of.
    """
    if dtype == "fp32" and precision == "ieee":
        # Products on CUDA cores: with longer chunks the operands would fill the registers.
        return {
            128: Tile(64, 16, 8, 2, FP32_REGISTERS),
            256: Tile(32, 16, 8, 2, FP32_REGISTERS),
            512: Tile(16, 16, 8, 2, FP32_REGISTERS),
        }[anchors]
    if dtype == "fp32":
        return {
            128: Tile(64, 32, 8, 2, FP32_REGISTERS),
            256: Tile(32, 32, 8, 2, FP32_REGISTERS),
            512: Tile(16, 16, 8, 2, FP32_REGISTERS),
        }[anchors]
    if multiple == 1:
        # Rows that do not start on 16 bytes are read element by element, through registers.
        return {
            128: Tile(64, 64, 8, 2),
            256: Tile(32, 32, 8, 2),
            512: Tile(16, 16, 8, 2),
        }[anchors]
    return {
        128: Tile(128, 64, 8, 3),  # 32 KB a stage: two programs on a Hopper multiprocessor
        256: Tile(64, 32, 8, 3),  # thinner chunks: the anchors are 16 KB of a 20 KB stage
        512: Tile(32, 32, 8, 2),  # 34 KB a stage
    }[anchors]


def tile_launch(
    tile: Tile,
    positions: int,
    channels: int,
    anchors: int,
    multiple: int,
    precision: str,
    inner: bool,
) -> Launch:
    """The launch of a kernel whose tiles have `positions` and `channels`, one of them tile.rows."""
    constants = {
        "POSITIONS": positions,
        "CHANNELS": channels,
        "ANCHORS": anchors,
        "INNER": inner,
        "MULTIPLE": multiple,
        "PRECISION": precision,
    }
    return Launch(constants, tile.warps, tile.stages, tile.registers)


def pack_launch(anchors: int, has_bias: bool) -> Launch:
    rows = PACK_ELEMENTS // anchors
    return Launch({"HAS_BIAS": has_bias, "ANCHORS": anchors, "ROWS": rows}, warps=4)


class Anchors:
    """Key, value and bias of one call in the layout that the kernels read."""

    def __init__(self, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None):
        batch, key_channels, count = key.shape
        value_channels = value.shape[1]
        self.padded = anchor_class(count)
        self.key_rows = round_up(key_channels, CHANNEL_MULTIPLE)
        self.value_rows = round_up(value_channels, CHANNEL_MULTIPLE)
        self.key = key.new_empty(batch, self.key_rows, self.padded)
        self.value = value.new_empty(batch, self.value_rows, self.padded)
        self.bias = key.new_empty(batch, self.padded, dtype=torch.float32)
        launch = pack_launch(self.padded, bias is not None)
        run(
            pack_anchors_kernel,
            batch * (self.key_rows + self.value_rows) // launch.constants["ROWS"],
            key,
            value,
            key if bias is None else bias,
            self.key,
            self.value,
            self.bias,
            count,
            key_channels,
            value_channels,
            self.key_rows,
            self.value_rows,
            launch=launch,
        )


def multiple_of(query: torch.Tensor, value: torch.Tensor, inner: bool) -> int:
    """Elements that rows of query and of [B, Cv, N] maps of its layout are known multiples of."""
    if query.dtype == torch.float32 and precision_of(query.dtype) == "ieee":
        return 1  # products on CUDA cores take longer than 4-byte copies: no variant of their own
    if inner:
        return known_factor(query, query.shape[1], value.shape[1])
    return known_factor(query, query.shape[2])


def pack_cases() -> list[AotCase]:
    """Every compilation that `Anchors` can ask for."""
    names = ("p_key", "p_value", "p_bias", "p_packed_key", "p_packed_value")
    return [
        AotCase(
            pack_anchors_kernel,
            dict.fromkeys(names, dtype) | {"p_packed_bias": "fp32"},
            pack_launch(padded, has_bias),
        )
        for dtype in TRITON_DTYPES.values()
        for padded in ANCHOR_CLASSES
        for has_bias in (False, True)
    ]


def variants(dtype: str) -> list[tuple[int, int, str, bool]]:
    """Padded anchors, multiple, precision, channels inner: what kernels are compiled for."""
    products = [("ieee", factor) for factor in FACTORS[dtype]]
    if dtype == "fp32":
        products = [("ieee", 1), *(("tf32", factor) for factor in FACTORS[dtype])]
    return [
        (anchors, factor, precision, inner)
        for anchors, (precision, factor), inner in product(ANCHOR_CLASSES, products, (False, True))
    ]
