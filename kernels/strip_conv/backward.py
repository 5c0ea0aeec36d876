"""Triton backward of strip_conv.

Source: Guo et al., SegNeXt (NeurIPS 2022), eq. (1).

With h_s = horizontal_s(a) + bias: dh_s = vertical_s^T(grad), da = grad + sum_s horizontal_s^T(dh_s)
and dx = local^T(da). Gradients of taps and biases are sums over pixels of grad with h_s, dh_s with
a, and da with x: partial sums, added in order. Nothing is kept of the forward: a and h_s are
computed again. a, da, h_s and dh_s are scratch maps in float32, eight of them with three strips;
more strips go through the latter two three at a time.
"""

from __future__ import annotations

import torch

from ..._layout import empty_map, is_channels_inner
from .._depthwise import TapSums, by_tap, convolve, launch_of
from .._launch import on_device
from .forward import groups_of, packed


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    given: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """dx like x, and the gradients of weights and biases."""
    taps, biases, *sides = packed(weights, given, biased)
    launch = launch_of(x)
    kernel_size, *_ = sides  # and the lengths of rows and of columns
    groups = groups_of(*sides)
    count, bias_count = taps.shape[1], biases.shape[1]
    dx = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(grad, x) as (grad, x):
        taps, biases = by_tap(taps), by_tap(biases)
        sums = TapSums(x, count + bias_count, launch)
        dlocal = grad
        if groups:
            local = torch.empty_like(x, dtype=torch.float32)
            convolve(x, local, taps, biases, kernel_size, False, launch)
        for strips in groups:
            maps = strips.spread(local, taps, biases, False, launch)
            dmaps = strips.spread(grad, taps, biases, True, launch)
            base, dlocal = dlocal, torch.empty_like(local)
            strips.gather(base, dmaps, taps, biases, dlocal, True, launch)
            tap, bias = strips.tap, count + strips.bias
            for i, (row, column) in enumerate(zip(strips.rows, strips.columns, strict=True)):
                sums.add(dmaps[i], local, (1, row), tap, bias)
                sums.add(grad, maps[i], (column, 1), tap + row, bias + 1)
                tap, bias = tap + row + column, bias + 2
        sums.add(dlocal, x, kernel_size, 0, count)
        convolve(dlocal, dx, taps, None, kernel_size, True, launch)
        totals = sums.totals(x.dtype)
    dweights = [torch.empty_like(weight) for weight in weights]
    parts = totals[:, :count].split([w.shape[2] * w.shape[3] for w in weights], dim=1)
    for to, part in zip(dweights, parts, strict=True):
        to.copy_(part.reshape(to.shape))
    return dx, dweights, [totals[:, count + i].contiguous() for i in biased]
