"""Rows of the static report in words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..report.grid import number

DTYPE = "bfloat16"  # of the rows that short tables show
BACKENDS = {"triton": "Triton", "cuda": "CUDA C++"}


def name_of(row: dict[str, Any], between: str = " ") -> str:
    """An input in words: its shape and options."""
    shape = "x".join(map(str, row["shape"]))
    options = between.join(f"{name} {value}" for name, value in row["options"])
    return ", ".join(part for part in (shape, options) if part)


def preferred(rows: Sequence[dict[str, Any]], op: str) -> list[dict[str, Any]]:
    """The rows of an op in bfloat16 that have an estimate, in channels_last if it has that."""
    chosen = [row for row in rows if row["op"] == op and row["dtype"] == DTYPE]
    layouts = {row["layout"] for row in chosen}
    layout = "channels_last" if "channels_last" in layouts else min(layouts, default="")
    return [row for row in chosen if row["layout"] == layout and row.get("low_us") is not None]


def estimate(rows: Sequence[dict[str, Any]]) -> str:
    """Estimate and floor in microseconds of the faster of Triton and CUDA C++."""
    if not rows:
        return ""
    best = min(rows, key=lambda row: row["low_us"] + row["high_us"])
    low, high = number(best["low_us"]), number(best["high_us"])
    spread = low if low == high else f"{low} to {high}"
    return f"{spread}, floor {number(best['floor_us'])} ({BACKENDS[best['backend']]})"
