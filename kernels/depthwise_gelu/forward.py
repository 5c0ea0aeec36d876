"""Triton forward and backward of depthwise_gelu.

Source: Guo et al., SegNeXt (NeurIPS 2022), figure 2.

The backward computes the convolution z again and keeps one map, in float32: dz = grad * gelu'(z).
dx is its transposed convolution; dweight and dbias are partial sums, added in order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._depthwise import (
    KERNEL,
    SIZES,
    TapSums,
    by_tap,
    convolve,
    convolved,
    launch_of,
    layouts,
    load_shift,
    map_programs,
    owned_tile,
    refuse_map,
    tile_at,
)
from .._launch import (
    TRITON_DTYPES,
    AotCase,
    Launch,
    aligned_storage,
    device_guard,
    known_multiple,
    run,
)

SQRT_HALF = tl.constexpr(0.7071067811865476)
DENSITY_AT_0 = tl.constexpr(0.3989422804014327)  # of the normal distribution: 1 / sqrt(2 pi)


@triton.jit(do_not_specialize=[*SIZES, *KERNEL, "has_bias"])
def gelu_kernel(
    p_x,
    p_taps,
    p_bias,
    p_grad,
    p_out,
    channels,
    height,
    width,
    kernel_height,
    kernel_width,
    has_bias,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    INNER: tl.constexpr,
    MULTIPLE: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """out = gelu(z), or with BACKWARD out = grad * gelu'(z), for z = convolution of x + bias.

    gelu(z) = z F(z), gelu'(z) = F(z) + z f(z) with the normal distribution F and its density f.
    p_x, p_grad (read with BACKWARD), p_out [B, C, H, W], or channels last with INNER;
    p_taps [kh * kw, C], p_bias [C].
    Grid: B * ceil(C / CHANNELS) * ceil(H * W / POSITIONS); one program owns a run of pixels of a
    few channels of one item. Reads x (and grad) and writes out once.
    """
    channels = known_multiple(channels, MULTIPLE)
    tile, block, batch = owned_tile(channels, height, width, POSITIONS, CHANNELS, INNER)
    b_row, b_column, b_channel, b_place, mask = tile_at(
        tile, block, channels, height, width, POSITIONS, CHANNELS, INNER
    )
    b_place += batch * channels * height * width
    b_z = convolved(
        p_x + b_place,
        p_taps,
        b_row,
        b_column,
        b_channel,
        mask,
        channels,
        height,
        width,
        kernel_height,
        kernel_width,
        0,
        INNER,
    )
    if has_bias != 0:
        b_z += load_shift(p_bias, b_channel, channels)
    b_share = 0.5 * (1.0 + tl.math.erf(b_z * SQRT_HALF))
    if BACKWARD:
        b_grad = tl.load(p_grad + b_place, mask=mask, other=0.0).to(tl.float32)
        b_out = b_grad * (b_share + b_z * (DENSITY_AT_0 * tl.exp(-0.5 * b_z * b_z)))
    else:
        b_out = b_z * b_share
    tl.store(p_out + b_place, b_out.to(p_out.dtype.element_ty), mask=mask)


def _gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = gelu(z), or grad * gelu'(z) where a gradient is given."""
    launch = gelu_launch(launch_of(x), grad is not None)
    taps = by_tap(weight)
    run(
        gelu_kernel,
        map_programs(x, launch),
        x,
        taps,
        taps if bias is None else aligned_storage(bias),
        x if grad is None else grad,
        out,
        *x.shape[1:],
        *weight.shape[2:],
        int(bias is not None),
        launch=launch,
    )


def gelu_launch(launch: Launch, backward: bool) -> Launch:
    return replace(launch, constants=launch.constants | {"BACKWARD": backward})


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor]:
    """out [B, C, H, W] in the layout of x."""
    out = empty_map(x.shape, x, is_channels_inner(x))
    with device_guard(x):
        _gelu(aligned_storage(x), weight, bias, None, out)
    return (out,)


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, dweight like weight, dbias [C]."""
    kernel = weight.shape[2:]
    count = kernel[0] * kernel[1]
    launch = launch_of(x)
    dx = empty_map(x.shape, x, is_channels_inner(x))
    dz = torch.empty_like(x, dtype=torch.float32)
    with device_guard(x):
        grad, x = map(aligned_storage, (grad, x))
        _gelu(x, weight, bias, grad, dz)
        convolve(dz, dx, by_tap(weight), None, kernel, True, launch)
        sums = TapSums(x, count + 1, launch)
        sums.add(dz, x, kernel, 0, count)
        totals = sums.totals(x.dtype)
    dweight = totals[:, :count].contiguous().view(weight.shape)
    return dx, dweight, totals[:, count].contiguous()


def refuse(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    return refuse_map(x)


def aot_cases() -> list[AotCase]:
    """Every compilation of gelu_kernel."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_x", "p_taps", "p_bias", "p_grad", "p_out"), dtype)
        for launch in layouts(dtype):
            cases.append(AotCase(gelu_kernel, pointers, gelu_launch(launch, False)))
            wide = pointers | {"p_out": "fp32"}
            cases.append(AotCase(gelu_kernel, wide, gelu_launch(launch, True)))
    return cases
