"""A requirement, and what was measured for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Goal:
    """One requirement and what was measured for it; None: not measured."""

    what: str
    where: str
    required: str
    measured: float | None
    replayed: float | None  # the same with the time of CUDA-graph replay
    met: bool | None
    note: str = ""

    @property
    def verdict(self) -> str:
        if self.met is None:
            return "not measured"
        return "met" if self.met else "not met"


def divide(above: float | None, below: float | None) -> float | None:
    if above is None or below is None:
        return None
    return above / below if below else float("inf")
