"""A sample of a grid of test cases in which every value of every parameter occurs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

SIZE = 6
FEW = 3  # a parameter of so few values is an option, like a dtype


def sample(cases: Sequence[tuple[str, Mapping[str, int]]], size: int = SIZE) -> set[int]:
    """Indices of about `size` of `cases`.

    Every value of every parameter is among them and, where the parameters have at most `FEW`
    values, so is every pair of values: each option is there in each dtype. Beyond that a hash of
    the name decides, so that the choice neither follows the order of the parameters, as a stride
    does, nor changes from run to run.

    Args:
        cases: of each its name and, by parameter, a number for its value.
        size: more are taken only where the values need them.
    """
    order = sorted(range(len(cases)), key=lambda i: hashlib.sha256(cases[i][0].encode()).digest())
    small = _small(cases)
    wanted = [_wanted(parameters, small) for _, parameters in cases]
    missing = set().union(*wanted) if wanted else set()
    kept: set[int] = set()
    while missing:
        best = max(order, key=lambda i: len(wanted[i] & missing))  # the first of the best
        kept.add(best)
        missing -= wanted[best]
    for index in order:
        if len(kept) >= size:
            break
        kept.add(index)
    return kept


def _small(cases: Sequence[tuple[str, Mapping[str, int]]]) -> list[str]:
    """The parameters of few values."""
    values: dict[str, set[int]] = {}
    for _, parameters in cases:
        for name, value in parameters.items():
            values.setdefault(name, set()).add(value)
    return sorted(name for name, found in values.items() if 1 < len(found) <= FEW)


def _wanted(parameters: Mapping[str, int], small: Sequence[str]) -> set[tuple]:
    """What a case shows: the values of its parameters, and the pairs of its options."""
    singles = set(parameters.items())
    options = [(name, parameters[name]) for name in small if name in parameters]
    return singles | {(a, b) for i, a in enumerate(options) for b in options[i + 1 :]}
