"""The exponent of a curve: the slope of a straight line through its logarithms."""

from __future__ import annotations

from collections.abc import Sequence

import numpy


def exponent(x: Sequence[float], y: Sequence[float | None]) -> float | None:
    """p of the c·x^p that fits best by least squares of the logarithms; None: under two points.

    Points without a positive y are left out.
    """
    known = [(a, b) for a, b in zip(x, y, strict=True) if b is not None and b > 0]
    if len({a for a, _ in known}) < 2:
        return None
    slope, _ = numpy.polyfit(*(numpy.log(values) for values in zip(*known, strict=True)), 1)
    return float(slope)


def last(values: Sequence[float]) -> Sequence[float]:
    """The larger half of the points, at least three: where the leading term shows."""
    return values[-max(3, (len(values) + 1) // 2) :]
