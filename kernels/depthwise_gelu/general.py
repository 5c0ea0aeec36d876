"""depthwise_gelu of any odd kernel, tap by tap.

Backward: dx is a transposed convolution of dz; dweight and dbias are partial sums, added in order.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .. import _depthwise as depthwise
from .._gelu import gelu, gelu_slope
from .._launch import TRITON_DTYPES, AotCase, Launch, aligned_storage, on_device, run
from .._multiples import known_multiple


@triton.jit(do_not_specialize=[*depthwise.SIZES, *depthwise.KERNEL, "has_bias"])
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
    sizes = (known_multiple(channels, MULTIPLE), height, width)
    tile = depthwise.owned_tile(sizes, POSITIONS, CHANNELS, INNER)
    b_z = depthwise.convolved(p_x, p_taps, tile, kernel_height, kernel_width, 0, INNER)
    if has_bias != 0:
        b_z += depthwise.load_bias(p_bias, tile)
    if BACKWARD:
        b_grad = tl.load(p_grad + tile.b_place, mask=tile.mask, other=0.0).to(tl.float32)
        b_out = b_grad * gelu_slope(b_z)
    else:
        b_out = gelu(b_z)
    tl.store(p_out + tile.b_place, b_out.to(p_out.dtype.element_ty), mask=tile.mask)


def run_gelu(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    grad: torch.Tensor | None,
    out: torch.Tensor,
) -> None:
    """out = gelu(z), or grad * gelu'(z) where a gradient is given."""
    launch = gelu_launch(depthwise.launch_of(x), grad is not None)
    taps = depthwise.by_tap(weight)
    run(
        gelu_kernel,
        depthwise.map_programs(x, launch),
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


def forward(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """out [B, C, H, W] in the layout of x."""
    out = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(x) as (x,):
        run_gelu(x, weight, bias, None, out)
    return out


def backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """dx like x, dweight like weight, dbias [C]."""
    kernel_size = weight.shape[2:]
    count = kernel_size[0] * kernel_size[1]
    launch = depthwise.launch_of(x)
    dx = empty_map(x.shape, x, is_channels_inner(x))
    dz = torch.empty_like(x, dtype=torch.float32)
    with on_device(grad, x) as (grad, x):
        run_gelu(x, weight, bias, grad, dz)
        depthwise.convolve(dz, dx, depthwise.by_tap(weight), None, kernel_size, True, launch)
        sums = depthwise.TapSums(x, count + 1, launch)
        sums.add(dz, x, kernel_size, 0, count)
        totals = sums.totals(x.dtype)
    dweight = totals[:, :count].contiguous().view(weight.shape)
    return dx, dweight, totals[:, count].contiguous()


def aot_cases() -> list[AotCase]:
    """Every compilation of gelu_kernel."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        pointers = dict.fromkeys(("p_x", "p_taps", "p_bias", "p_grad", "p_out"), dtype)
        for launch in depthwise.layouts(dtype):
            cases.append(AotCase(gelu_kernel, pointers, gelu_launch(launch, False)))
            wide = pointers | {"p_out": "fp32"}
            cases.append(AotCase(gelu_kernel, wide, gelu_launch(launch, True)))
    return cases
