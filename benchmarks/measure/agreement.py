"""Whether two contenders computed the same: nothing is timed that does not."""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the root mean square of the reference. Both sides round every intermediate map to the
# dtype; float32 differs by the order of sums of up to 2048 terms.
TOLERANCE = {
    torch.float64: 1e-12,
    torch.float32: 2e-5,
    torch.float16: 5e-3,
    torch.bfloat16: 4e-2,
}
# One position may differ by this many times more than the whole.
POSITION = 8
# Share of positions where rounding may push some channel over the bend of a ReLU, which changes the
# gradient there at once, not by a rounding error.
RELU_STRAYS = {
    torch.float64: 0.0,
    torch.float32: 1e-3,
    torch.float16: 0.25,
    torch.bfloat16: 0.25,
}


class Disagreement(AssertionError):
    """A contender's output is not the reference's."""


def position_errors(found: Tensor, expected: Tensor) -> Tensor:
    """Error of `found` `[B, C, ...]` at every position, norm over channels.

    Relative to the root mean square of `expected` over positions.
    """
    error = torch.linalg.vector_norm((found - expected).float().flatten(2), dim=1)
    norm = torch.linalg.vector_norm(expected.float().flatten(2), dim=1)
    return (error / norm.square().mean().sqrt()).flatten()


def check_same(name: str, found: Tensor, expected: Tensor, strays: float = 0.0) -> float:
    """The relative error of `found`, if it is as small as rounding allows.

    Args:
        strays: share of positions whose error is not limited so tightly (only to 1).

    Raises:
        Disagreement: shapes or values differ, or there is nothing to compare (zeros, NaN).
    """
    if found.shape != expected.shape:
        raise Disagreement(
            f"{name}: output is {list(found.shape)}, expected {list(expected.shape)}"
        )
    if not expected.any() or not expected.isfinite().all():
        raise Disagreement(f"{name}: the reference output is zero or not finite")
    errors = position_errors(found, expected).sort().values  # NaN comes last
    rest = errors[: errors.numel() - int(strays * errors.numel())]
    whole, worst = rest.square().mean().sqrt().item(), rest[-1].item()
    allowed = TOLERANCE[expected.dtype]
    # NaN compares false
    if not (whole <= allowed and worst <= POSITION * allowed and errors[-1].item() <= 1):
        raise Disagreement(
            f"{name}: relative error {whole:.1e} (worst position {worst:.1e}), "
            f"expected at most {allowed:.0e} ({POSITION * allowed:.0e})"
        )
    return whole


def check_labels(name: str, found: Tensor, expected: Tensor) -> float:
    """The share of labels that differ, if it is as small as ties within rounding explain.

    Raises:
        Disagreement: shapes differ, or more than one label in ten thousand does.
    """
    if found.shape != expected.shape:
        raise Disagreement(
            f"{name}: output is {list(found.shape)}, expected {list(expected.shape)}"
        )
    share = (found != expected).float().mean().item()
    if share > 1e-4:
        raise Disagreement(f"{name}: {100 * share:.3f} % of the labels differ")
    return share
