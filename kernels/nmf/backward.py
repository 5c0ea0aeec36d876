"""Triton backward of nmf: back through every recorded update, or through the last one alone.

Source: the derivative of algorithm 1 of Geng et al., Is Attention Better Than Matrix Decomposition?
(ICLR 2021). In the terms of gradients.py, dX is the sum of A dP^T over the updates of the
coefficients and of dP C^T over those of the bases: one product in the end, of what the updates
leave behind, so that nothing of the size of X is added to step by step.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from ..._layout import empty_map, is_channels_inner
from .._launch import AotCase, Launch, device_guard, run
from .gradients import (
    bases_backward_launch,
    coef_backward_launch,
    gradient_cases,
    nmf_bases_backward_kernel,
    nmf_coef_backward_kernel,
)
from .grams import gram_cases, update_bases
from .sums import CHUNK, Group, groups_of, sums_cases


@triton.jit
def add_outer(
    acc,
    p_bases,
    p_coef,
    b_channel,
    b_position,
    channels,
    positions,
    rank,
    CHUNK: tl.constexpr,
):
    """acc + bases coef^T: [CHANNELS, POSITIONS].

    p_bases [channels, rank], p_coef [positions, rank].
    """
    b_k = tl.arange(0, CHUNK)
    p_left = p_bases + b_channel[:, None] * rank + b_k[None, :]
    p_right = p_coef + b_position.to(tl.int64)[None, :] * rank + b_k[:, None]
    in_left = (b_channel < channels)[:, None]
    in_right = (b_position < positions)[None, :]
    for start in range(0, rank, CHUNK):
        inside = start + b_k < rank
        b_left = tl.load(p_left + start, mask=in_left & inside[None, :], other=0.0)
        b_right = tl.load(p_right + start, mask=in_right & inside[:, None], other=0.0)
        acc = tl.dot(b_left, b_right, acc, input_precision="ieee")
    return acc


@triton.jit(
    do_not_specialize=["batch", "items", "positions", "channels", "rank", "steps"],
    do_not_specialize_on_alignment=["p_first", "p_bases", "p_factor", "p_dp", "p_coef", "p_dx"],
)
def nmf_dx_kernel(
    p_first,
    p_bases,
    p_factor,
    p_dp,
    p_coef,
    p_dx,
    batch,
    items,
    positions,
    channels,
    rank,
    steps,
    POSITIONS: tl.constexpr,
    CHANNELS: tl.constexpr,
    CHUNK: tl.constexpr,
    INNER: tl.constexpr,
):
    """dx = first dp[0]^T + sum over steps of bases[k] dp[k + 1]^T + factor[k] coef[k]^T.

    p_first [items, D, R]. Slices of all steps: p_bases [steps, batch, D, R], p_coef [steps, batch,
    N, R], from the first of the items on; p_factor [steps, items, D, R], p_dp [steps + 1, items,
    N, R]. p_dx [items, D, N]: contiguous, or with INNER the channel index fastest.
    Grid: items * ceil(N / POSITIONS) * ceil(D / CHANNELS); one program owns a tile of one item.
    Writes dx once; reads 2 * steps + 1 maps of the coefficients' size D / CHANNELS times, all but
    once out of the level-2 cache.
    """
    blocks = tl.cdiv(channels, CHANNELS)
    tiles = tl.cdiv(positions, POSITIONS)
    block = tl.program_id(0) % blocks
    tile = (tl.program_id(0) // blocks) % tiles
    item = (tl.program_id(0) // (blocks * tiles)).to(tl.int64)
    b_channel = block * CHANNELS + tl.arange(0, CHANNELS)
    b_position = tile * POSITIONS + tl.arange(0, POSITIONS)
    of_bases = item * channels * rank
    of_coef = item * positions * rank
    p_dp += of_coef
    acc = tl.zeros([CHANNELS, POSITIONS], dtype=tl.float32)
    acc = add_outer(
        acc, p_first + of_bases, p_dp, b_channel, b_position, channels, positions, rank, CHUNK
    )
    p_bases += of_bases
    p_factor += of_bases
    p_coef += of_coef
    wide = rank.to(tl.int64)
    for _ in range(steps):
        p_dp += wide * items * positions
        acc = add_outer(acc, p_bases, p_dp, b_channel, b_position, channels, positions, rank, CHUNK)
        acc = add_outer(
            acc, p_factor, p_coef, b_channel, b_position, channels, positions, rank, CHUNK
        )
        p_bases += wide * batch * channels
        p_factor += wide * items * channels
        p_coef += wide * batch * positions
    if INNER:
        b_offset = b_position.to(tl.int64)[None, :] * channels + b_channel[:, None]
    else:
        b_offset = b_channel.to(tl.int64)[:, None] * positions + b_position[None, :]
    mask = (b_channel < channels)[:, None] & (b_position < positions)[None, :]
    tl.store(p_dx + item * channels * positions + b_offset, acc, mask=mask)


def dx_launch(inner: bool) -> Launch:
    constants = {"POSITIONS": 64, "CHANNELS": 64, "CHUNK": CHUNK, "INNER": inner}
    return Launch(constants, warps=8, stages=3, registers=255)


class _Backward:
    """Gradients of one group of batch items."""

    def __init__(
        self, group: Group, x: torch.Tensor, slots: int, options: tuple[float, float]
    ) -> None:
        self.group = group
        self.x = x
        self.options = options
        coefs = (group.items, group.positions, group.rank)
        self.bases_shape = (group.items, group.channels, group.rank)
        self.dp = x.new_empty(slots, *coefs)
        self.dq, self.dcoef = (x.new_empty(coefs) for _ in range(2))
        self.factor = x.new_empty(slots - 1, *self.bases_shape)
        self.bases_dq = x.new_empty(self.bases_shape)
        self.gram, self.dgram = (group.new_squares(x) for _ in range(2))
        self.dsums, self.sums = (group.new_sums(x) for _ in range(2))

    def coef(
        self,
        slot: int,
        bases: torch.Tensor,
        before: torch.Tensor,
        after: torch.Tensor,
        dnext: torch.Tensor,
        slab: tuple[int, int],
        alone: bool = False,
    ) -> None:
        """Update number slot + 1 of the coefficients; dnext: of its result, so far."""
        group = self.group
        ends = slot == len(self.factor)
        run(
            nmf_coef_backward_kernel,
            group.items * group.tiles_of(slab),
            self.x,
            bases,
            self.gram,
            before,
            after,
            dnext,
            bases if ends else self.factor[slot],
            self.gram if ends else self.dgram,
            self.dcoef,
            self.dp[slot],
            self.dq,
            *self.options,
            *group.slab_sizes(slab),
            int(slot == 0),
            int(ends),
            int(alone),
            launch=coef_backward_launch(group.padded, group.inner),
        )

    def bases(
        self, slot: int, before: torch.Tensor, after: torch.Tensor, dnext: torch.Tensor
    ) -> None:
        """Update number `slot` of the bases; 0: there is none, only sums that are left to do."""
        group = self.group
        run(
            nmf_bases_backward_kernel,
            group.items * group.parts,
            before,
            after,
            dnext,
            self.dsums,
            self.sums,
            self.factor[slot - 1] if slot else before,
            self.bases_dq,
            self.dgram,
            self.gram,
            self.options[1],
            *group.sizes,
            int(slot == 0),
            launch=bases_backward_launch(group.padded),
        )

    def unrolled(
        self, dbases: torch.Tensor, dcoef: torch.Tensor, all_bases: list, past_coef: torch.Tensor
    ) -> None:
        """dP and factors of all updates; the gradient of the first bases replaces that of the last.

        all_bases: the given bases and those after each step; past_coef [steps + 2, items, N, R].
        """
        group = self.group
        update_bases(group, all_bases[-1], None, all_bases[-1], self.gram, self.options[1])
        for slot in reversed(range(len(all_bases))):
            before, after = past_coef[slot], past_coef[slot + 1]
            for slab in group.slabs():
                self.coef(slot, all_bases[slot], before, after, dcoef, slab)
                group.sum_slab(self.x, self.dp[slot], before, self.dq, self.dsums, slab)
                if slot:
                    group.sum_slab(self.x, before, before, before, self.sums, slab)
            self.bases(slot, all_bases[max(slot - 1, 0)], all_bases[slot], dbases)
            dcoef = self.dcoef

    def one_step(self, dcoef: torch.Tensor, bases: torch.Tensor, coef: torch.Tensor) -> None:
        """dP of the last update alone; bases and coef are constants."""
        update_bases(self.group, bases, None, bases, self.gram, self.options[1])
        for slab in self.group.slabs():
            self.coef(0, bases, coef, coef, dcoef, slab, alone=True)

    def dx(
        self,
        first: torch.Tensor,
        past_bases: torch.Tensor,
        past_coef: torch.Tensor,
        dx: torch.Tensor,
    ) -> None:
        """The product of everything kept; past_*: from the first step on, slices of all items."""
        group = self.group
        launch = dx_launch(group.inner)
        tiles = triton.cdiv(group.positions, launch.constants["POSITIONS"])
        run(
            nmf_dx_kernel,
            group.items * tiles * triton.cdiv(group.channels, launch.constants["CHANNELS"]),
            first,
            past_bases,
            self.factor,
            self.dp,
            past_coef,
            dx,
            past_coef.stride(0) // (group.positions * group.rank),
            group.items,
            group.positions,
            group.channels,
            group.rank,
            len(self.factor),
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
    dx = empty_map(x.shape, x, inner)
    dbases = torch.zeros_like(bases)
    steps = 0 if one_step else len(past_bases)
    with device_guard(x):
        for items, x_, group in groups_of(x, bases.shape[2], inner):
            work = _Backward(group, x_, steps + 1, (inv_t, eps))
            dcoef = torch.zeros_like(work.dcoef) if grad_coef is None else grad_coef[items].float()
            if one_step:
                first = past_bases[0, items]
                work.one_step(dcoef, first, past_coef[0, items])
            else:
                first = bases[items].float()
                state = x_.new_zeros(work.bases_shape)
                if grad_bases is not None:
                    state.copy_(grad_bases[items])
                kept = past_coef[:, items]
                work.unrolled(state, dcoef, [first, *past_bases[:, items]], kept)
                dbases[items] = state
            target = dx[items] if dx.dtype == torch.float32 else torch.empty_like(x_)
            # Without steps nothing is read of the past but its sizes.
            work.dx(first, past_bases[:, items], past_coef[min(steps, 1) :, items], target)
            if target.dtype != dx.dtype:
                dx[items] = target
    return dx, dbases


def aot_cases() -> list[AotCase]:
    """Every compilation that `backward` can ask for, beside those of the forward."""
    names = ("p_first", "p_bases", "p_factor", "p_dp", "p_coef", "p_dx")
    launches = [dx_launch(inner) for inner in (False, True)]
    dx = [AotCase(nmf_dx_kernel, dict.fromkeys(names, "fp32"), launch) for launch in launches]
    return gradient_cases() + sums_cases() + gram_cases() + dx
