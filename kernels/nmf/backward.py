"""Triton backward of nmf: back through every recorded update, or through the last one alone.

Source: the derivative of algorithm 1 of Geng et al., Is Attention Better Than Matrix Decomposition?
(ICLR 2021).
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import torch
import triton

from ..._layout import empty_map, is_channels_inner
from .._launch import TRITON_DTYPES, AotCase, Launch, on_device, run
from .._multiples import FACTORS, known_factor
from .bases_backward import nmf_bases_backward_kernel, nmf_prepare_backward_kernel
from .coef_backward import nmf_coef_backward_kernel
from .forward import Bases, coef_launch, prepare_launch, variants
from .map_gradient import nmf_dx_kernel, nmf_one_step_kernel
from .plan import (
    BLOCK,
    PARTS,
    RANK_CLASSES,
    SMALL_RANK,
    SMALL_SHAPES,
    Plan,
    Shape,
    bases_shapes_of,
    factor_of,
    shapes_of,
)

NO_GRADIENT, GIVEN, COMPUTED = range(3)  # what the gradient of coefficients starts from


def coef_backward_launch(
    shape: Shape, padded: int, inner: bool, exact: bool, multiple: int, single: bool
) -> Launch:
    if not single:
        shape = replace(shape, chunk=min(shape.chunk, 32))  # registers
    launch = coef_launch(shape, padded, inner, exact, multiple, single)
    if single and not exact and padded <= SMALL_RANK:
        launch = replace(launch, stages=1)  # they, too
    return launch


def bases_backward_launch(shape: Shape, padded: int, multiple: int) -> Launch:
    block = min(2 * BLOCK, padded * padded)  # there are two tables
    constants = {"ROWS": shape.rows, "RANK": padded, "BLOCK": block, "PARTS": PARTS // 2}
    return Launch(constants | {"MULTIPLE": multiple}, shape.warps, registers=255)


def dx_launch(inner: bool, multiple: int) -> Launch:
    constants = {"POSITIONS": 64, "CHANNELS": 64, "CHUNK": 16}
    constants |= {"INNER": inner, "MULTIPLE": multiple}
    return Launch(constants, warps=4, stages=2, registers=255)


def one_step_launch(shape: Shape, padded: int, inner: bool, multiple: int) -> Launch:
    constants = {"TILE": shape.tile, "CHUNK": shape.chunk, "RANK": padded}
    constants |= {"INNER": inner, "MULTIPLE": multiple}
    return Launch(constants, shape.warps, stages=2, registers=255)


class _Unrolled:
    """One call: what its launches share."""

    def __init__(self, x: torch.Tensor, plan: Plan, inv_t: float, eps: float, steps: int) -> None:
        self.x, self.plan, self.options = x, plan, (inv_t, eps)
        self.inner = is_channels_inner(x)
        self.multiple = factor_of(x, plan.rank, self.inner)
        coefs, bases = (plan.positions, plan.rank), (plan.channels, plan.rank)
        padded, square = (plan.padded, plan.width), (plan.padded, plan.padded)
        self.bases, self.state, self.factor = (plan.empty(x, *padded) for _ in range(3))
        self.squares = plan.empty(x, 2, *square)
        self.shares = plan.empty(x, plan.parts, 2, *square)
        self.arrived = x.new_empty(plan.items, plan.parts + 1, dtype=torch.int32)
        self.first, self.dcoef, self.dq = (plan.empty(x, *s) for s in (bases, coefs, coefs))
        self.dp = x.new_empty(steps + 1, plan.items, *coefs, dtype=torch.float32)
        self.factors = x.new_empty(steps, plan.items, *bases, dtype=torch.float32)
        self.sums = plan.empty(x, plan.splits, 2, plan.table)
        self.totals = plan.empty(x, 2, plan.table)

    def prepare(self, given: torch.Tensor, last: torch.Tensor, grad: torch.Tensor | None) -> None:
        plan = self.plan
        run(
            nmf_prepare_backward_kernel,
            plan.items * (plan.parts + 1),
            given,
            last,
            given if grad is None else grad,
            self.first,
            self.bases,
            self.squares,
            self.state,
            self.factor,
            self.arrived,
            plan.channels,
            plan.rank,
            plan.width,
            plan.parts,
            int(grad is not None),
            launch=prepare_launch(plan.shape, plan.padded, known_factor(given, plan.rank)),
        )

    def back_coef(
        self,
        slot: int,
        before: torch.Tensor,
        after: torch.Tensor,
        grad: torch.Tensor | None,
        source: int,
    ) -> None:
        """Update number slot + 1 of the coefficients."""
        plan, exact = self.plan, self.x.dtype != torch.float32
        run(
            nmf_coef_backward_kernel,
            plan.items * plan.splits,
            self.x,
            self.bases,
            self.factor,
            self.squares,
            before,
            after,
            self.x if grad is None else grad,
            self.dcoef,
            self.dp[slot],
            self.dq,
            self.sums,
            *self.options,
            *plan.sizes,
            plan.splits,
            plan.tiles,
            source,
            int(slot == 0),
            launch=coef_backward_launch(
                plan.shape, plan.padded, self.inner, exact, self.multiple, plan.keeps_gradients
            ),
        )

    def back_bases(self, slot: int, before: torch.Tensor, dgiven: torch.Tensor) -> None:
        """Update number `slot` of the bases; 0: there is none, only sums that are left to do."""
        plan = self.plan
        launch = bases_backward_launch(plan.shape, plan.padded, known_factor(dgiven, plan.rank))
        run(
            nmf_bases_backward_kernel,
            plan.items * 2 * plan.table // launch.constants["BLOCK"],
            self.sums,
            self.totals,
            self.bases,
            before,
            self.state,
            self.factor,
            self.factors[slot - 1] if slot else self.first,
            self.squares,
            self.shares,
            dgiven,
            self.arrived,
            self.options[1],
            plan.channels,
            plan.rank,
            plan.width,
            plan.splits,
            plan.parts,
            int(slot == 0),
            launch=launch,
        )

    def dx(self, past_bases: torch.Tensor, past_coef: torch.Tensor, dx: torch.Tensor) -> None:
        plan = self.plan
        launch = dx_launch(self.inner, self.multiple)
        tiles = triton.cdiv(plan.positions, launch.constants["POSITIONS"])
        run(
            nmf_dx_kernel,
            plan.items * tiles * triton.cdiv(plan.channels, launch.constants["CHANNELS"]),
            self.first,
            past_bases,
            self.factors,
            self.dp,
            past_coef,
            dx,
            plan.items,
            plan.positions,
            plan.channels,
            plan.rank,
            len(self.factors),
            launch=launch,
        )


def _back_one_step(
    plan: Plan,
    bases: torch.Tensor,
    coef: torch.Tensor,
    grad: torch.Tensor | None,
    eps: float,
    dx: torch.Tensor,
    dbases: torch.Tensor,
) -> None:
    """Through the last update alone; bases and coef are constants."""
    inner = is_channels_inner(dx)
    launch = one_step_launch(plan.shape, plan.padded, inner, factor_of(dx, plan.rank, inner))
    prepared = Bases(plan, bases)
    run(
        nmf_one_step_kernel,
        plan.items * triton.cdiv(plan.positions, launch.constants["TILE"]),
        prepared.values,
        prepared.gram,
        coef,
        dx if grad is None else grad,
        dx,
        dbases,
        eps,
        *plan.sizes,
        int(grad is not None),
        launch=launch,
    )


def backward(
    x: torch.Tensor,
    bases: torch.Tensor,
    grad_bases: torch.Tensor | None,
    grad_coef: torch.Tensor | None,
    past_bases: torch.Tensor,
    past_coef: torch.Tensor,
    inv_t: float,
    eps: float,
    one_step: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """dx in the layout of x, and dbases: zeros where `one_step`."""
    inner = is_channels_inner(x)
    multiple = factor_of(x, bases.shape[2], inner)
    plan = Plan.of(x, bases.shape[2], multiple)
    if x.dtype != torch.float32 and multiple == 1:
        given = (x, bases, grad_bases, grad_coef)
        wide = (None if t is None else t.float() for t in given)
        found = backward(*wide, past_bases, past_coef, inv_t, eps, one_step)
        return found[0].to(x.dtype), found[1].to(x.dtype)
    dx, dbases = empty_map(x.shape, x, inner), torch.empty_like(bases)
    if plan.items == 0:
        return dx, dbases
    given = (x, bases, *(t for t in (grad_bases, grad_coef) if t is not None))
    with on_device(*given) as (x_, bases_, *grads):
        grad_coef = None if grad_coef is None else grads.pop()
        grad_bases = None if grad_bases is None else grads.pop()
        if one_step:
            _back_one_step(plan, past_bases[0], past_coef[0], grad_coef, eps, dx, dbases)
            return dx, dbases
        steps = len(past_bases)
        call = _Unrolled(x_, plan, inv_t, eps, steps)
        # Without steps the last bases are the given ones, in float32 if not wide already.
        call.prepare(bases_, past_bases[-1] if steps else bases_.float(), grad_bases)
        for slot in reversed(range(steps + 1)):
            source = COMPUTED if slot < steps else NO_GRADIENT if grad_coef is None else GIVEN
            call.back_coef(slot, past_coef[slot], past_coef[slot + 1], grad_coef, source)
            before = past_bases[slot - 2] if slot > 1 else call.first
            call.back_bases(slot, before, dbases)
        call.dx(past_bases, past_coef, dx)
    return dx, dbases


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, beside those of the forward."""
    cases = []
    scalars = {"inv_t": "fp32", "eps": "fp32"}
    wide = ("p_bases", "p_factor", "p_squares", "p_coef", "p_next")
    wide += ("p_dcoef", "p_dp", "p_dq", "p_sums")
    for padded, inner, dtype, multiple in variants():
        pointers = dict.fromkeys(("p_x", "p_grad"), dtype) | dict.fromkeys(wide, "fp32")
        stepped = dict.fromkeys(("p_grad", "p_dx", "p_dbases"), dtype)
        stepped |= dict.fromkeys(("p_bases", "p_gram", "p_coef"), "fp32")
        for shape, of in shapes_of(padded, multiple):
            is_half = padded == SMALL_RANK and shape == SMALL_SHAPES[padded]
            for single in (False,) if is_half else (False, True):
                launch = coef_backward_launch(
                    shape, padded, inner, dtype != "fp32", multiple, single
                )
                cases.append(AotCase(nmf_coef_backward_kernel, pointers, launch, scalars, of))
            launch = one_step_launch(shape, padded, inner, multiple)
            cases.append(AotCase(nmf_one_step_kernel, stepped, launch, {"eps": "fp32"}, of))
        if padded == RANK_CLASSES[0]:
            names = ("p_first", "p_bases", "p_factor", "p_dp", "p_coef")
            pointers = dict.fromkeys(names, "fp32") | {"p_dx": dtype}
            cases.append(AotCase(nmf_dx_kernel, pointers, dx_launch(inner, multiple)))
    sums = ("p_sums", "p_totals", "p_bases", "p_before", "p_state", "p_factor", "p_kept")
    sums += ("p_squares", "p_shares")
    first = ("p_last", "p_first", "p_bases", "p_squares", "p_state", "p_factor")
    for padded, dtype in product(RANK_CLASSES, TRITON_DTYPES.values()):
        for multiple in FACTORS[dtype]:
            for shape, of in bases_shapes_of(padded, multiple):
                pointers = dict.fromkeys(sums, "fp32") | {"p_dgiven": dtype, "p_arrived": "i32"}
                launch = bases_backward_launch(shape, padded, multiple)
                scalars = {"eps": "fp32"}
                cases.append(AotCase(nmf_bases_backward_kernel, pointers, launch, scalars, of))
                pointers = dict.fromkeys(first, "fp32") | {"p_arrived": "i32"}
                pointers |= dict.fromkeys(("p_given", "p_grad"), dtype)
                launch = prepare_launch(shape, padded, multiple)
                cases.append(AotCase(nmf_prepare_backward_kernel, pointers, launch, {}, of))
    return cases
