"""Triton forward of strip_conv.

Source: Guo et al., SegNeXt (NeurIPS 2022), eq. (1).

Two launches: the local convolution a, in a scratch map with zeros around it, and all strips of it.
Between them an element costs 8 bytes of scratch traffic, besides reading x and writing out.
Kernels of sizes that registers do not hold, more than three strips or none go another way
(general.py).
"""

from __future__ import annotations

import torch

from ..._layout import empty_map, is_channels_inner
from .. import _depthwise as depthwise
from .._launch import TRITON_DTYPES, AotCase, aligned_storage, on_device, run
from . import general
from .plan import (
    LOCAL_REGISTERS,
    SEGNEXT,
    STRIP_REGISTERS,
    Plan,
    launch_of,
    plan_of,
    tile_for_threads,
)
from .prepare import prepare_strips_kernel
from .strips import strips_kernel

READ = [name for name in prepare_strips_kernel.arg_names if name.startswith("p_")]


def prepare(
    plan: Plan,
    x: torch.Tensor,
    grad: torch.Tensor | None,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """a and grad with zeros around them (grad: a again, where there is none), the parameters."""
    shape = (plan.planes, plan.padded, plan.pitch, plan.lanes)
    local = x.new_empty(shape, dtype=torch.float32)
    padded = local if grad is None else x.new_empty(shape, dtype=torch.float32)
    parameters = x.new_empty((plan.blocks, plan.parameters, plan.lanes), dtype=torch.float32)
    missing = [weights[0]] * (7 - len(weights))
    shifts = dict(zip(biased, biases, strict=True))
    launch = plan.launch(plan.prepared, LOCAL_REGISTERS, BACKWARD=grad is not None)
    tiles = plan.tiles(plan.pitch, plan.prepared) * (1 if grad is None else 2)
    run(
        prepare_strips_kernel,
        tiles + plan.packing_programs,
        x,
        x if grad is None else grad,
        local,
        padded,
        parameters,
        *weights,
        *missing,
        *(shifts.get(i, weights[0]) for i in range(7)),
        *plan.sizes,
        plan.pitch,
        plan.padded,
        sum(1 << i for i in biased),
        launch=launch,
    )
    return local, padded, parameters


def forward(
    x: torch.Tensor,
    weights: list[torch.Tensor],
    biases: list[torch.Tensor],
    biased: list[int],
) -> tuple[torch.Tensor]:
    """out [B, C, H, W] in the layout of x."""
    plan = plan_of(x, weights)
    if plan is None:
        return general.forward(x, weights, biases, biased)
    out = empty_map(x.shape, x, is_channels_inner(x))
    with on_device(x) as (x,):
        weights, biases = ([aligned_storage(t) for t in ts] for ts in (weights, biases))
        local, _, parameters = prepare(plan, x, None, weights, biases, biased)
        run(
            strips_kernel,
            plan.tiles(x.shape[3], plan.positions),
            local,
            parameters,
            out,
            *plan.sizes,
            plan.pitch,
            plan.padded,
            launch=plan.launch(plan.positions, STRIP_REGISTERS),
        )
    return (out,)


def refuse(x: torch.Tensor, *parameters: object) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    return depthwise.refuse_map(x)


def aot_cases() -> list[AotCase]:
    """Both kernels for SegNeXt's strips; others compile when they are first launched."""
    cases = []
    for dtype in TRITON_DTYPES.values():
        scratch = {"p_a": "fp32", "p_padded": "fp32", "p_parameters": "fp32"}
        for inner in (True, False):
            lanes, _, prepared = tile_for_threads(inner, 0)
            for backward in (False, True):
                tile = {"POSITIONS": prepared, "LANES": lanes, "INNER": inner}
                launch = launch_of({"SIDES": SEGNEXT, "BACKWARD": backward} | tile, LOCAL_REGISTERS)
                cases.append(
                    AotCase(prepare_strips_kernel, dict.fromkeys(READ, dtype) | scratch, launch)
                )
            for width in (0, 128) if not inner else (0,):
                positions = tile_for_threads(inner, width)[1]
                tile = {"POSITIONS": positions, "LANES": lanes, "INNER": inner}
                launch = launch_of({"SIDES": SEGNEXT} | tile, STRIP_REGISTERS)
                pointers = {"p_a": "fp32", "p_parameters": "fp32", "p_out": dtype}
                cases.append(AotCase(strips_kernel, pointers, launch))
    return cases
