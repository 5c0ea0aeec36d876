"""The backward of feed_forward step by step, for float32 and where registers do not hold all sums.

The products are PyTorch's: of a channels_last map one matrix product, of a contiguous one a product
an item. Between them, maps of hidden channels: hidden, the gradient of the GELU, the GELU, the
gradient of its argument, that of hidden.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import is_channels_inner
from .. import _depthwise as depthwise
from .._gelu import gelu, gelu_slope
from .._launch import TRITON_DTYPES, AotCase, aligned_storage, on_device, run
from .._multiples import known_multiple
from .products import apply, outer


@triton.jit(do_not_specialize=[*depthwise.SIZES, *depthwise.KERNEL, "has_bias"])
def feed_forward_gelu_kernel(
    p_hidden,
    p_taps,
    p_bias,
    p_grad,
    p_gelu,
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
):
    """gelu(z), and grad * gelu'(z) in place of grad, for z = convolution of hidden + bias.

    p_hidden, p_grad, p_gelu [B, D, H, W], or channels last with INNER; p_taps [kh * kw, D], p_bias
    [D].
    Grid: B * ceil(D / CHANNELS) * ceil(H * W / POSITIONS); one program owns a run of pixels of a
    few channels of one item. Reads hidden and grad and writes two maps once.
    """
    sizes = (known_multiple(channels, MULTIPLE), height, width)
    tile = depthwise.owned_tile(sizes, POSITIONS, CHANNELS, INNER)
    b_z = depthwise.convolved(p_hidden, p_taps, tile, kernel_height, kernel_width, 0, INNER)
    if has_bias != 0:
        b_z += depthwise.load_bias(p_bias, tile)
    b_grad = tl.load(p_grad + tile.b_place, mask=tile.mask, other=0.0).to(tl.float32)
    b_grad *= gelu_slope(b_z)
    tl.store(p_grad + tile.b_place, b_grad.to(p_grad.dtype.element_ty), mask=tile.mask)
    tl.store(p_gelu + tile.b_place, gelu(b_z).to(p_gelu.dtype.element_ty), mask=tile.mask)


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """grad_x like x, the gradients of the three weights, those of the biases that there are."""
    expand, contract = weights[0].flatten(1), weights[2].flatten(1)
    given = dict(zip(biased, biases, strict=True))
    inner = is_channels_inner(x)
    sides, count = weights[1].shape[2:], weights[1][0].numel()
    with on_device(grad, x) as (grad, x):
        hidden = apply(expand, x, inner, given.get(0))
        dz = apply(contract.t(), grad, inner)
        after = torch.empty_like(hidden)
        launch, taps = depthwise.launch_of(hidden), depthwise.by_tap(weights[1])
        run(
            feed_forward_gelu_kernel,
            depthwise.map_programs(hidden, launch),
            hidden,
            taps,
            aligned_storage(given[1]) if 1 in given else taps,
            dz,
            after,
            *hidden.shape[1:],
            *sides,
            int(1 in given),
            launch=launch,
        )
        sums = depthwise.TapSums(hidden, count + 1, launch)
        sums.add(dz, hidden, sides, 0, count)
        totals = sums.totals(x.dtype)
        dhidden = torch.empty_like(hidden)
        depthwise.convolve(dz, dhidden, taps, None, sides, True, launch)
        found = [
            outer(dhidden, x, inner).view(weights[0].shape),
            totals[:, :count].contiguous().view(weights[1].shape),
            outer(grad, after, inner).view(weights[2].shape),
        ]
        of_biases = {
            0: lambda: dhidden.sum(dim=(0, 2, 3)),
            1: lambda: totals[:, count].contiguous(),
            2: lambda: grad.sum(dim=(0, 2, 3)),
        }
        grad_x = apply(expand.t(), dhidden, inner)
        return grad_x, found, [of_biases[i]() for i in biased]


def aot_cases() -> list[AotCase]:
    """Every compilation of feed_forward_gelu_kernel."""
    names = ("p_hidden", "p_taps", "p_bias", "p_grad", "p_gelu")
    return [
        AotCase(feed_forward_gelu_kernel, dict.fromkeys(names, dtype), launch)
        for dtype in TRITON_DTYPES.values()
        for launch in depthwise.layouts(dtype)
    ]
