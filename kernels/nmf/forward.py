"""Triton forward of nmf: multiplicative updates of coefficients and bases, two launches a step.

Source: Geng et al., Is Attention Better Than Matrix Decomposition? (ICLR 2021), algorithm 1.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import torch

from ..._layout import is_channels_inner
from ...nmf import RECORD_ALL, RECORD_LAST, RECORD_NOTHING
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, refuse_tensor, run
from .._multiples import FACTORS, known_factor
from .bases import nmf_bases_kernel, nmf_prepare_kernel
from .coef import nmf_coef_kernel
from .plan import (
    BLOCK,
    MAX_RANK,
    PARTS,
    RANK_CLASSES,
    SMALL_RANK,
    Plan,
    Shape,
    bases_shapes_of,
    factor_of,
    is_small,
    shapes_of,
)


def prepare_launch(shape: Shape, padded: int, multiple: int) -> Launch:
    constants = {"ROWS": shape.rows, "RANK": padded, "MULTIPLE": multiple}
    return Launch(constants, shape.warps, stages=2, registers=255)


def coef_launch(
    shape: Shape, padded: int, inner: bool, exact: bool, multiple: int, single: bool
) -> Launch:
    constants = {"TILE": shape.tile, "CHUNK": shape.chunk, "RANK": padded, "INNER": inner}
    constants |= {"EXACT": exact, "MULTIPLE": multiple, "SINGLE": single}
    stages = 2 if single or padded <= 64 else 1  # registers
    if multiple == 1 and padded > RANK_CLASSES[0] and not single:
        constants["CHUNK"], stages = 16, 1  # they, too: an address an element
    return Launch(constants, shape.warps, stages, registers=255)


def coef_forward_launch(shape: Shape, padded: int, *options: Any) -> Launch:
    """options: as of coef_launch, the last of them whether a program owns a single tile."""
    launch = coef_launch(shape, padded, *options)
    if padded <= SMALL_RANK or options[-1]:
        return launch
    # Fewer, wider tiles: their sums take less than what is read again for each of them.
    return replace(launch, constants={**launch.constants, "TILE": 2 * shape.tile})


def bases_launch(shape: Shape, padded: int, multiple: int) -> Launch:
    constants = {"ROWS": shape.rows, "RANK": padded, "BLOCK": BLOCK, "PARTS": PARTS}
    return Launch(constants | {"MULTIPLE": multiple}, shape.warps, registers=255)


class Bases:
    """The bases as the kernels read them, and what comes and goes with them."""

    def __init__(self, plan: Plan, given: torch.Tensor) -> None:
        self.plan = plan
        self.values = plan.empty(given, plan.padded, plan.width)
        self.gram = plan.empty(given, plan.padded, plan.padded)
        self.shares = plan.empty(given, plan.parts, plan.padded, plan.padded)
        self.arrived = given.new_empty(plan.items, plan.parts + 1, dtype=torch.int32)
        run(
            nmf_prepare_kernel,
            plan.items * (plan.parts + 1),
            given,
            self.values,
            self.gram,
            self.arrived,
            plan.channels,
            plan.rank,
            plan.width,
            plan.parts,
            launch=prepare_launch(plan.shape, plan.padded, known_factor(given, plan.rank)),
        )


class _Steps:
    """One call: what its launches share."""

    def __init__(self, x: torch.Tensor, given: torch.Tensor, plan: Plan, eps: float) -> None:
        self.x, self.plan, self.eps = x, plan, eps
        self.multiple = factor_of(x, plan.rank, is_channels_inner(x))
        self.bases = Bases(plan, given)
        self.sums = plan.empty(x, plan.splits, plan.table)
        self.totals = plan.empty(x, plan.table)

    def coef(
        self, old: torch.Tensor, new: torch.Tensor, out: torch.Tensor, inv_t: float, *flags: bool
    ) -> None:
        """One update of the coefficients; flags: whether it begins, keeps and ends."""
        plan, inner = self.plan, is_channels_inner(self.x)
        options = (inner, self.x.dtype != torch.float32, self.multiple, plan.single)
        launch = coef_forward_launch(plan.shape, plan.padded, *options)
        run(
            nmf_coef_kernel,
            plan.items * plan.splits,
            self.x,
            self.bases.values,
            self.bases.gram,
            old,
            new,
            out,
            self.sums,
            inv_t,
            self.eps,
            *plan.sizes,
            plan.splits,
            plan.tiles * plan.shape.tile // launch.constants["TILE"],
            *map(int, flags),
            launch=launch,
        )

    def update(self, kept: torch.Tensor, found: torch.Tensor, *flags: bool) -> None:
        """One update of the bases; flags: whether it keeps and ends."""
        plan, bases = self.plan, self.bases
        run(
            nmf_bases_kernel,
            plan.items * plan.table // BLOCK,
            self.sums,
            self.totals,
            bases.values,
            bases.shares,
            bases.gram,
            kept,
            found,
            bases.arrived,
            self.eps,
            plan.channels,
            plan.rank,
            plan.width,
            plan.splits,
            plan.parts,
            *map(int, flags),
            launch=bases_launch(plan.shape, plan.padded, known_factor(found, plan.rank)),
        )


def forward(
    x: torch.Tensor,
    bases: torch.Tensor,
    steps: int,
    inv_t: float,
    eps: float,
    one_step: bool,
    record: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The last bases and coefficients, and what `record` asks to keep of them in float32."""
    multiple = factor_of(x, bases.shape[2], is_channels_inner(x))
    plan = Plan.of(x, bases.shape[2], multiple)
    if x.dtype != torch.float32 and multiple == 1:
        wide = forward(x.float(), bases.float(), steps, inv_t, eps, one_step, record)
        return wide[0].to(x.dtype), wide[1].to(x.dtype), *wide[2:]
    found = torch.empty_like(bases)
    coef = x.new_empty(plan.items, plan.positions, plan.rank)
    slots = {RECORD_NOTHING: (0, 1), RECORD_LAST: (1, 1), RECORD_ALL: (steps, steps + 2)}
    past_bases, past_coef = (
        x.new_empty(count, *like.shape, dtype=torch.float32)
        for count, like in zip(slots[record], (found, coef), strict=True)
    )
    if steps == 0:
        found.copy_(bases)
        if record == RECORD_LAST:
            past_bases[0] = bases
    if plan.items:
        keeps = record == RECORD_ALL
        with on_device(x, bases) as (x_, bases_):
            call = _Steps(x_, bases_, plan, eps)
            for step in range(steps + 1):
                old, new = (past_coef[i if keeps else 0] for i in (step, step + 1))
                call.coef(old, new, coef, inv_t, step == 0, keeps, step == steps)
                if step == steps:
                    break
                ends = step == steps - 1
                kept = past_bases[step if keeps else 0] if record else call.totals
                call.update(kept, found, keeps or (ends and record == RECORD_LAST), ends)
    if record == RECORD_NOTHING:
        past_bases, past_coef = (x.new_empty(0, dtype=torch.float32) for _ in range(2))
    return found, coef, past_bases, past_coef


def refuse(x: torch.Tensor, bases: torch.Tensor, *options: object) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    if bases.shape[2] > MAX_RANK:
        return f"triton: R={bases.shape[2]} bases: the fused kernels hold up to {MAX_RANK}"
    if bases.shape[2] > SMALL_RANK and is_small(x):
        return f"triton: R={bases.shape[2]} bases: needs compute capability 9 or 10"
    if x.shape[0] * x.shape[2] >= 2**31:
        return "triton: B*N positions must be fewer than 2**31"
    if x.shape[1] >= 2**23:
        return "triton: D must be below 2**23"  # tables of sums have fewer than 2**31 elements
    return refuse_tensor(x)


def variants() -> list[tuple[int, bool, str, int]]:
    """Padded rank, layout, element type and multiple of every variant: half precision that is not
    aligned is widened."""
    return [
        (padded, inner, dtype, multiple)
        for padded, inner in product(RANK_CLASSES, (False, True))
        for dtype in TRITON_DTYPES.values()
        for multiple in FACTORS[dtype]
        if dtype == "fp32" or multiple > 1
    ]


def aot_cases() -> list[AotCase]:
    """Every compilation that `forward` can ask for."""
    cases = []
    scalars = {"inv_t": "fp32", "eps": "fp32"}
    wide = ("p_bases", "p_gram", "p_coef", "p_next", "p_sums")
    for padded, inner, dtype, multiple in variants():
        pointers = dict.fromkeys(("p_x", "p_out"), dtype) | dict.fromkeys(wide, "fp32")
        for (shape, of), single in product(shapes_of(padded, multiple), (False, True)):
            launch = coef_forward_launch(shape, padded, inner, dtype != "fp32", multiple, single)
            cases.append(AotCase(nmf_coef_kernel, pointers, launch, scalars, of))
    wide = ("p_sums", "p_totals", "p_bases", "p_shares", "p_gram", "p_kept")
    for padded, dtype in product(RANK_CLASSES, TRITON_DTYPES.values()):
        for multiple in FACTORS[dtype]:
            for shape, of in bases_shapes_of(padded, multiple):
                pointers = dict.fromkeys(wide, "fp32") | {"p_found": dtype, "p_arrived": "i32"}
                launch = bases_launch(shape, padded, multiple)
                cases.append(AotCase(nmf_bases_kernel, pointers, launch, {"eps": "fp32"}, of))
                pointers = {"p_given": dtype, "p_bases": "fp32", "p_gram": "fp32"}
                launch = prepare_launch(shape, padded, multiple)
                pointers["p_arrived"] = "i32"
                cases.append(AotCase(nmf_prepare_kernel, pointers, launch, {}, of))
    return cases
