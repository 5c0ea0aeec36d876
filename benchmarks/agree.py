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


class Disagreement(AssertionError):
    """A contender's output is not the reference's."""


def relative_error(found: Tensor, expected: Tensor) -> tuple[float, float]:
    """Errors of `found` `[B, C, ...]`: of the whole, and at the worst position (over channels).

    Both are relative to the root mean square of `expected`.
    """
    error = torch.linalg.vector_norm((found - expected).float().flatten(2), dim=1)
    norm = torch.linalg.vector_norm(expected.float().flatten(2), dim=1)
    scale = norm.square().mean().sqrt()
    return (error.square().mean().sqrt() / scale).item(), (error.max() / scale).item()


def check_same(name: str, found: Tensor, expected: Tensor) -> float:
    """The relative error of `found`, if it is as small as rounding allows.

    Raises:
        Disagreement: shapes or values differ, or there is nothing to compare (zeros, NaN).
    """
    if found.shape != expected.shape:
        raise Disagreement(
            f"{name}: output is {list(found.shape)}, expected {list(expected.shape)}"
        )
    if not expected.any() or not expected.isfinite().all():
        raise Disagreement(f"{name}: the reference output is zero or not finite")
    whole, worst = relative_error(found, expected)
    allowed = TOLERANCE[expected.dtype]
    # NaN compares false
    if not (whole <= allowed and worst <= POSITION * allowed):
        raise Disagreement(
            f"{name}: relative error {whole:.1e} (worst position {worst:.1e}), "
            f"expected at most {allowed:.0e} ({POSITION * allowed:.0e})"
        )
    return whole
