"""Second half of upsample_cross_entropy's forward: from sums of programs to their sum or mean."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from .._launch import TRITON_DTYPES, AotCase, Launch, run

LAUNCH = Launch({"BLOCK": 1024}, warps=8)


@triton.jit
def add_both(b_sum, b_weights, b_more, b_more_weights):
    """Of two reductions at once: their steps wait for each other's latency no longer."""
    return b_sum + b_more, b_weights + b_more_weights


@triton.jit(do_not_specialize=["programs"])
def reduce_losses_kernel(p_partials, p_loss, p_share, programs, divisor, BLOCK: tl.constexpr):
    """loss = share * sum of partials[0], share = 1 / total.

    total = divisor, or the sum of partials[1] if that is 0. p_partials [2, programs] float32;
    p_loss and p_share are scalars, p_share float32.
    Grid: one program, which adds up in a fixed order. Reads 8 bytes for each that left sums.
    """
    b_at = tl.arange(0, BLOCK)
    b_sum = tl.zeros([BLOCK], tl.float32)
    b_weights = tl.zeros([BLOCK], tl.float32)
    for start in range(0, programs, BLOCK):
        mask = start + b_at < programs
        b_sum += tl.load(p_partials + start + b_at, mask=mask, other=0.0)
        b_weights += tl.load(p_partials + programs + start + b_at, mask=mask, other=0.0)
    loss, weights = tl.reduce((b_sum, b_weights), 0, add_both)
    total = tl.where(divisor == 0.0, weights, divisor)
    share = tl.math.div_rn(1.0, total)
    tl.store(p_share, share)
    tl.store(p_loss, (loss * share).to(p_loss.dtype.element_ty))


def reduce_losses(
    partials: torch.Tensor, loss: torch.Tensor, share: torch.Tensor, divisor: float
) -> None:
    """Fills the scalars `loss` and `share`; a divisor of 0 stands for the summed weights."""
    run(reduce_losses_kernel, 1, partials, loss, share, partials.shape[1], divisor, launch=LAUNCH)


def aot_cases() -> list[AotCase]:
    """Every compilation that `reduce_losses` can ask for."""
    pointers = {"p_partials": "fp32", "p_share": "fp32"}
    return [
        AotCase(reduce_losses_kernel, pointers | {"p_loss": dtype}, LAUNCH, {"divisor": "fp32"})
        for dtype in TRITON_DTYPES.values()
    ]
