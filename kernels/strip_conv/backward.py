"""Triton backward of strip_conv.

Source: Guo et al., SegNeXt (NeurIPS 2022), eq. (1).

With h_s = horizontal_s(a) + bias: gh_s = vertical_s^T(grad), da = grad + sum_s horizontal_s^T(gh_s)
and dx = local^T(da). Gradients of taps and biases are sums over pixels of grad with h_s, gh_s with
a, and da with x. Four launches: a and grad with zeros around them; da, with the partial sums of the
strips, in one; dx, with the partial sums of the local convolution; the totals. Nothing is kept of
the forward. Scratch: a, grad and da in float32, and the partial sums.
"""

from __future__ import annotations

from dataclasses import replace

import torch
import triton

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, aligned_storage, on_device, run
from . import general
from .forward import prepare
from .local import local_backward_kernel, strip_totals_kernel
from .plan import (
    BACKWARD_REGISTERS,
    LOCAL_REGISTERS,
    ROWS,
    SEGNEXT,
    launch_of,
    plan_of,
    tile_for_threads,
)
from .sums import strips_backward_kernel

TOTALS = {"PARTS": 16, "CHANNELS": 32}


def backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """dx like x, and the gradients of weights and biases."""
    plan = plan_of(x, weights, sums=True)
    if plan is None:
        return general.backward(grad, x, weights, biases, biased)
    _, channels, height, width = x.shape
    dx = empty_map(x.shape, x, is_channels_inner(x))
    dweights = [torch.empty_like(w) for w in weights]
    dbiases = [torch.empty_like(b) for b in biases]
    strips = replace(plan, rows=min(2 * plan.rows, ROWS[-1]))
    parts = max(plan.parts, strips.parts)
    taps = plan.parameters - len(weights)
    half = plan.sides[0] // 2
    with on_device(grad, x) as (grad, x):
        weights, biases = ([aligned_storage(t) for t in ts] for ts in (weights, biases))
        local, padded, parameters = prepare(plan, x, grad, weights, biases, biased)
        sums = x.new_empty((plan.parameters, parts, channels), dtype=torch.float32)
        shape = (plan.planes, height + half + 1, width, plan.lanes)
        dlocal = x.new_empty(shape, dtype=torch.float32)
        run(
            strips_backward_kernel,
            3 * strips.tiles(width, plan.positions),
            local,
            padded,
            parameters,
            dlocal,
            sums,
            *strips.sizes,
            plan.pitch,
            plan.padded,
            parts,
            launch=plan.launch(plan.positions, BACKWARD_REGISTERS),
        )
        run(
            local_backward_kernel,
            plan.tiles(width, plan.positions),
            dlocal,
            x,
            parameters,
            dx,
            sums,
            *plan.sizes,
            plan.parameters,
            taps,
            parts,
            launch=plan.local_launch(),
        )
        missing = [dweights[0]] * (7 - len(weights))
        shifts = dict(zip(biased, dbiases, strict=True))
        run(
            strip_totals_kernel,
            plan.parameters * triton.cdiv(channels, TOTALS["CHANNELS"]),
            sums,
            *dweights,
            *missing,
            *(shifts.get(i, dweights[0]) for i in range(7)),
            channels,
            parts,
            plan.parts,
            strips.parts,
            sum(1 << i for i in biased),
            launch=Launch({"SIDES": plan.sides} | TOTALS, 4, registers=LOCAL_REGISTERS),
        )
    return dx, dweights, dbiases


def aot_cases() -> list[AotCase]:
    """The kernels for SegNeXt's strips; others compile when they are first launched."""
    cases = []
    for inner in (True, False):
        lanes, positions, _ = tile_for_threads(inner, 0)
        tile = {"POSITIONS": positions, "LANES": lanes, "INNER": inner}
        launch = launch_of({"SIDES": SEGNEXT} | tile, BACKWARD_REGISTERS)
        maps = [n for n in strips_backward_kernel.arg_names if n.startswith("p_")]
        cases.append(AotCase(strips_backward_kernel, dict.fromkeys(maps, "fp32"), launch))
        launch = launch_of({"KH": SEGNEXT[0], "KW": SEGNEXT[1]} | tile, LOCAL_REGISTERS)
        for dtype in TRITON_DTYPES.values():
            pointers = {"p_grad_a": "fp32", "p_parameters": "fp32", "p_sums": "fp32"}
            pointers |= {"p_x": dtype, "p_dx": dtype}
            cases.append(AotCase(local_backward_kernel, pointers, launch))
    launch = Launch({"SIDES": SEGNEXT} | TOTALS, 4, registers=LOCAL_REGISTERS)
    for dtype in TRITON_DTYPES.values():
        outputs = [n for n in strip_totals_kernel.arg_names if n.startswith("p_")]
        pointers = dict.fromkeys(outputs, dtype) | {"p_sums": "fp32"}
        cases.append(AotCase(strip_totals_kernel, pointers, launch))
    return cases
