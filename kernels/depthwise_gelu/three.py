"""depthwise_gelu of 3x3 kernels: tiles walk down the rows and read each three times.

A row of the input is loaded three times, for its left, middle and right neighbours, and adds to the
three rows of the result that it reaches: two of them are carried on. Threads own 16 bytes of a row.
The gradient of z, the convolution, is a scratch map in the dtype of the op, as PyTorch's is.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._gelu import gelu, gelu_slope
from .._launch import TRITON_DTYPES, AotCase, Launch, aligned_storage, on_device, run
from .._multiples import FACTORS, known_factor, known_multiple

SIZES = ["channels", "height", "width", "rows"]
ENOUGH = 1024  # warps: two for each scheduler of a GPU
SUMS = tl.constexpr(10)  # of a channel: nine taps and the bias
PARTS = 32  # partial sums that are added at once


@triton.jit
def owned_strip(
    program, sizes, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, INNER: tl.constexpr
):
    """What a program owns: item, part of it (number), rows from - to, columns, channels.

    sizes: channels, height, width and rows of a program.
    """
    channels, height, width, rows = sizes
    tiles = tl.cdiv(width, POSITIONS)
    blocks = tl.cdiv(channels, CHANNELS)
    if INNER:
        block = program % blocks
        rest = program // blocks
        tile = rest % tiles
        rest = rest // tiles
    else:
        tile = program % tiles
        rest = program // tiles
        block = rest % blocks
        rest = rest // blocks
    strips = tl.cdiv(height, rows)
    begin = (rest % strips) * rows
    part = rest * tiles + tile
    b_column = tile * POSITIONS + tl.arange(0, POSITIONS)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    return rest // strips, part, begin, tl.minimum(begin + rows, height), b_column, b_channel


@triton.jit
def item_offsets(item, b_column, b_channel, sizes, INNER: tl.constexpr):
    """Offsets [POSITIONS, CHANNELS] of a row of an item, and elements from a row to the next."""
    channels, height, width, _ = sizes
    area = height * width
    b_place = tl.cast(item, tl.int64) * channels * area
    if INNER:
        b_place += b_column[:, None] * channels + b_channel[None, :]
        return b_place, tl.cast(width, tl.int64) * channels
    b_place += b_channel.to(tl.int64)[None, :] * area + b_column[:, None]
    return b_place, tl.cast(width, tl.int64)


@triton.jit
def load_row(p_row, row, b_column, across, b_in_channels, sizes, INNER: tl.constexpr):
    """The elements `across` columns from those of a row of a tile, zero outside the map."""
    channels, height, width, _ = sizes
    b_beside = b_column + across
    # A row outside the map has no columns.
    last = tl.where((row >= 0) & (row < height), width, 0)
    mask = ((b_beside >= 0) & (b_beside < last))[:, None] & b_in_channels[None, :]
    p_beside = p_row + across * (channels if INNER else 1)
    return tl.load(p_beside, mask=mask, other=0.0).to(tl.float32)


@triton.jit
def load_taps(p_weight, b_channel, channels):
    """Nine taps [1, CHANNELS] of channels, row by row."""
    taps = ()
    for i in tl.static_range(9):
        p_tap = p_weight + b_channel * 9 + i
        b_tap = tl.load(p_tap, mask=b_channel < channels, other=0.0).to(tl.float32)
        taps += (b_tap[None, :],)
    return taps


@triton.jit(do_not_specialize=[*SIZES, "has_bias"])
def gelu_rows_kernel(
    p_x,
    p_weight,
    p_bias,
    p_grad,
    p_out,
    channels,
    height,
    width,
    rows,
    has_bias,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BACKWARD: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """out = gelu(z), or with BACKWARD out = grad * gelu'(z), for z = convolution of x + bias.

    p_x, p_grad (read with BACKWARD), p_out [B, C, H, W], or channels last with INNER;
    p_weight [C, 1, 3, 3], p_bias [C]. Channels with INNER, else the width is a multiple of
    MULTIPLE.
    Grid: B * ceil(H / rows) * ceil(W / POSITIONS) * ceil(C / CHANNELS); one program owns columns of
    a few channels in some rows. Reads x once from memory, three times from the caches, and two rows
    more than it owns; writes out once.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        width = known_multiple(width, MULTIPLE)
    sizes = (channels, height, width, rows)
    item, _part, begin, end, b_column, b_channel = owned_strip(
        tl.program_id(0), sizes, POSITIONS, CHANNELS, INNER
    )
    b_in_channels = b_channel < channels
    mask = (b_column < width)[:, None] & b_in_channels[None, :]
    taps = load_taps(p_weight, b_channel, channels)
    b_start = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    if has_bias != 0:
        b_start += tl.load(p_bias + b_channel, mask=b_in_channels, other=0.0).to(tl.float32)
    b_place, stride = item_offsets(item, b_column, b_channel, sizes, INNER)
    b_above, b_here = b_start, b_start
    for row in range(begin - 1, end + 1):
        b_at = b_place + row * stride
        b_left = load_row(p_x + b_at, row, b_column, -1, b_in_channels, sizes, INNER)
        b_middle = load_row(p_x + b_at, row, b_column, 0, b_in_channels, sizes, INNER)
        b_right = load_row(p_x + b_at, row, b_column, 1, b_in_channels, sizes, INNER)
        if row > begin:
            b_z = b_above + taps[6] * b_left + taps[7] * b_middle + taps[8] * b_right
            if BACKWARD:
                b_grad = tl.load(p_grad + (b_at - stride), mask=mask, other=0.0).to(tl.float32)
                b_out = b_grad * gelu_slope(b_z)
            else:
                b_out = gelu(b_z)
            tl.store(p_out + (b_at - stride), b_out.to(p_out.dtype.element_ty), mask=mask)
        b_above = b_here + taps[3] * b_left + taps[4] * b_middle + taps[5] * b_right
        b_here = b_start + taps[0] * b_left + taps[1] * b_middle + taps[2] * b_right


@triton.jit
def turned_rows(
    p_dz, p_weight, p_dx, program, sizes, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, INNER
):
    """dx: the convolution of dz with the taps in reverse order."""
    channels, _height, width, _rows = sizes
    item, _part, begin, end, b_column, b_channel = owned_strip(
        program, sizes, POSITIONS, CHANNELS, INNER
    )
    b_in_channels = b_channel < channels
    mask = (b_column < width)[:, None] & b_in_channels[None, :]
    taps = load_taps(p_weight, b_channel, channels)
    b_place, stride = item_offsets(item, b_column, b_channel, sizes, INNER)
    b_above = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    b_here = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    for row in range(begin - 1, end + 1):
        b_at = b_place + row * stride
        b_left = load_row(p_dz + b_at, row, b_column, -1, b_in_channels, sizes, INNER)
        b_middle = load_row(p_dz + b_at, row, b_column, 0, b_in_channels, sizes, INNER)
        b_right = load_row(p_dz + b_at, row, b_column, 1, b_in_channels, sizes, INNER)
        if row > begin:
            b_out = b_above + taps[2] * b_left + taps[1] * b_middle + taps[0] * b_right
            tl.store(p_dx + (b_at - stride), b_out.to(p_dx.dtype.element_ty), mask=mask)
        b_above = b_here + taps[5] * b_left + taps[4] * b_middle + taps[3] * b_right
        b_here = taps[8] * b_left + taps[7] * b_middle + taps[6] * b_right


@triton.jit
def sum_taps(
    p_dz, p_x, p_parts, program, sizes, POSITIONS: tl.constexpr, CHANNELS: tl.constexpr, INNER
):
    """Sums over the pixels of a strip of x of x * (dz at a tap's distance), and of dz."""
    channels, _height, _width, _rows = sizes
    item, part, begin, end, b_column, b_channel = owned_strip(
        program, sizes, POSITIONS, CHANNELS, INNER
    )
    b_in_channels = b_channel < channels
    b_place, stride = item_offsets(item, b_column, b_channel, sizes, INNER)
    b_before = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    b_middle_x = tl.zeros([POSITIONS, CHANNELS], tl.float32)
    sums = ()
    for _ in tl.static_range(SUMS):
        sums += (tl.zeros([POSITIONS, CHANNELS], tl.float32),)
    for row in range(begin - 1, end + 1):
        b_at = b_place + row * stride
        # Rows of x that are another program's count as zero.
        below = tl.where(row + 1 < end, row + 1, -1)
        b_after = load_row(p_x + (b_at + stride), below, b_column, 0, b_in_channels, sizes, INNER)
        b_left = load_row(p_dz + b_at, row, b_column, -1, b_in_channels, sizes, INNER)
        b_middle = load_row(p_dz + b_at, row, b_column, 0, b_in_channels, sizes, INNER)
        b_right = load_row(p_dz + b_at, row, b_column, 1, b_in_channels, sizes, INNER)
        own = (row >= begin) & (row < end)
        sums = (
            tl.fma(b_before, b_right, sums[0]),
            tl.fma(b_before, b_middle, sums[1]),
            tl.fma(b_before, b_left, sums[2]),
            tl.fma(b_middle_x, b_right, sums[3]),
            tl.fma(b_middle_x, b_middle, sums[4]),
            tl.fma(b_middle_x, b_left, sums[5]),
            tl.fma(b_after, b_right, sums[6]),
            tl.fma(b_after, b_middle, sums[7]),
            tl.fma(b_after, b_left, sums[8]),
            sums[9] + tl.where(own, b_middle, 0.0),
        )
        b_before = b_middle_x
        b_middle_x = b_after
    p_part = p_parts + tl.cast(part, tl.int64) * SUMS * channels + b_channel
    for i in tl.static_range(SUMS):
        tl.store(p_part + i * channels, tl.sum(sums[i], axis=0), mask=b_in_channels)


@triton.jit(do_not_specialize=[*SIZES, "strips"])
def gelu_gradients_kernel(
    p_dz,
    p_x,
    p_weight,
    p_dx,
    p_parts,
    channels,
    height,
    width,
    rows,
    strips,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
):
    """dx, and partial sums of the gradients of taps and bias, by as many programs each.

    p_dz, p_x, p_dx [B, C, H, W], or channels last with INNER; p_weight [C, 1, 3, 3]; p_parts
    [parts, 10, C] float32: nine taps, then the bias.
    Grid: 2 * strips, as many as gelu_rows_kernel has programs: the first half owns rows of dx, the
    second one rows of x. Reads dz twice, x once and writes dx once.
    """
    if INNER:
        channels = known_multiple(channels, MULTIPLE)
    else:
        width = known_multiple(width, MULTIPLE)
    sizes = (channels, height, width, rows)
    program = tl.program_id(0)
    if program < strips:
        turned_rows(p_dz, p_weight, p_dx, program, sizes, POSITIONS, CHANNELS, INNER)
    else:
        sum_taps(p_dz, p_x, p_parts, program - strips, sizes, POSITIONS, CHANNELS, INNER)


@triton.jit(do_not_specialize=["channels", "parts"])
def gelu_totals_kernel(
    p_parts,
    p_dweight,
    p_dbias,
    channels,
    parts,
    PARTS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Sums over all parts: dweight [C, 1, 3, 3] and dbias [C] from p_parts [parts, 10, C] float32.

    Grid: 10 * ceil(C / CHANNELS); one program owns one sum of a few channels.
    """
    index = tl.program_id(0) % SUMS
    b_channel = (tl.program_id(0) // SUMS) * CHANNELS + tl.arange(0, CHANNELS)
    in_channels = b_channel < channels
    b_sum = tl.zeros([PARTS, CHANNELS], tl.float32)
    for start in range(0, parts, PARTS):
        b_part = start + tl.arange(0, PARTS)
        b_row = (b_part.to(tl.int64) * SUMS + index) * channels
        mask = (b_part < parts)[:, None] & in_channels[None, :]
        b_sum += tl.load(p_parts + (b_row[:, None] + b_channel[None, :]), mask=mask, other=0.0)
    b_total = tl.sum(b_sum, axis=0).to(p_dweight.dtype.element_ty)
    if index < 9:
        tl.store(p_dweight + b_channel * 9 + index, b_total, mask=in_channels)
    else:
        tl.store(p_dbias + b_channel, b_total, mask=in_channels)


def strip_launch(inner: bool, multiple: int, **others: bool) -> Launch:
    """Of kernels that walk down strips of a map."""
    positions, channels = (16, 64) if inner else (64, 16)
    constants = {"POSITIONS": positions, "CHANNELS": channels, **others}
    return Launch(constants | {"INNER": inner, "MULTIPLE": multiple}, warps=4, registers=255)


def sums_launch(inner: bool, multiple: int) -> Launch:
    """Of kernels that sum over a strip: warps share the sums of a channel with no other warp."""
    launch = strip_launch(inner, multiple)
    if not inner:
        return launch
    return replace(launch, constants=launch.constants | {"POSITIONS": 4}, warps=1)


TOTALS = Launch({"PARTS": PARTS, "CHANNELS": 32}, warps=4, registers=255)


class Strips:
    """How a launch cuts maps like one, when so many programs (roles) own a part."""

    def __init__(self, x: torch.Tensor, launch: Launch, roles: int = 1) -> None:
        batch, channels, height, width = x.shape
        self.launch = launch
        tiles = batch * triton.cdiv(width, launch.constants["POSITIONS"])
        blocks = triton.cdiv(channels, launch.constants["CHANNELS"])
        # Two rows more are read than owned: as many as possible, where there are warps enough.
        for rows in (16, 8, 4, 2):
            self.parts = tiles * triton.cdiv(height, rows)
            self.sizes = (channels, height, width, rows)
            if roles * self.parts * blocks * launch.warps >= ENOUGH:
                break
        self.programs = self.parts * blocks


def multiple_of(x: torch.Tensor) -> tuple[bool, int]:
    """Whether channels come last, and what the contiguous side is known to be a multiple of."""
    inner = is_channels_inner(x)
    return inner, known_factor(x, x.shape[1] if inner else x.shape[3])


def run_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = gelu(z), or grad * gelu'(z) where a gradient is given."""
    strips = Strips(x, strip_launch(*multiple_of(x), BACKWARD=grad is not None))
    run(
        gelu_rows_kernel,
        strips.programs,
        x,
        weight,
        weight if bias is None else aligned_storage(bias),
        x if grad is None else grad,
        out,
        *strips.sizes,
        int(bias is not None),
        launch=strips.launch,
    )


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """out [B, C, H, W] in the layout of x."""
    out = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(x, weight) as (x, weight):
        run_gelu(x, weight, bias, None, out)
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, dweight like weight, dbias [C]."""
    channels, inner = x.shape[1], is_channels_inner(x)
    dx, dz = (empty_map(x.shape, x, inner) for _ in range(2))
    dweight, dbias = torch.empty_like(weight), weight.new_empty((channels,))
    with on_device(grad, x, weight) as (grad, x, weight):
        run_gelu(x, weight, bias, grad, dz)
        strips = Strips(x, sums_launch(*multiple_of(x)), roles=2)
        parts = x.new_empty((strips.parts, SUMS.value, channels), dtype=torch.float32)
        arguments = (dz, x, weight, dx, parts, *strips.sizes, strips.programs)
        run(gelu_gradients_kernel, 2 * strips.programs, *arguments, launch=strips.launch)
        programs = SUMS.value * triton.cdiv(channels, TOTALS.constants["CHANNELS"])
        arguments = (parts, dweight, dbias, channels, strips.parts)
        run(gelu_totals_kernel, programs, *arguments, launch=TOTALS)
    return dx, dweight, dbias


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` and `backward` can ask for."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        for inner, multiple in ((i, n) for i in (False, True) for n in FACTORS[dtype]):
            pointers = dict.fromkeys(("p_x", "p_weight", "p_bias", "p_grad", "p_out"), dtype)
            for flag in (False, True):
                launch = strip_launch(inner, multiple, BACKWARD=flag)
                cases.append(AotCase(gelu_rows_kernel, pointers, launch))
            pointers = dict.fromkeys(("p_dz", "p_x", "p_weight", "p_dx"), dtype)
            launch = sums_launch(inner, multiple)
            cases.append(AotCase(gelu_gradients_kernel, pointers | {"p_parts": "fp32"}, launch))
        pointers = {"p_parts": "fp32", "p_dweight": dtype, "p_dbias": dtype}
        cases.append(AotCase(gelu_totals_kernel, pointers, TOTALS))
    return cases
