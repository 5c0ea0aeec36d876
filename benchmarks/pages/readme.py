"""The two tables of README.md: every op on a CPU, and the estimates of its GPU kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..report.grid import number
from ..static import table as static
from . import costs

CPU_HEADER = ("op", "input", "forward", "forward + backward")
GPU_HEADER = ("op", "input", "forward", "backward")
BACKENDS = {"triton": "Triton", "cuda": "CUDA C++"}
BLOCK = "anchor_attention"  # which has no benchmark of its own: inside the block of its paper


def tables(ops: list[str], results: Path) -> dict[str, str]:
    return {"ops": _cpu(ops, results), "kernels": _gpu(ops, results)}


def _markdown(header: tuple[str, ...], lines: list[list[str]]) -> str:
    rows = [f"| {' | '.join(header)} |", "| --- | --- | ---: | ---: |"]
    return "\n".join([*rows, *(f"| {' | '.join(line)} |" for line in lines)])


def _cpu(ops: list[str], results: Path) -> str:
    """Times of the chain and of the compiled chain over ours, each in its better format."""
    lines = []
    for op in ops:
        found = {}
        for _, rows, _ in costs.sources(op, results):
            for what, *_, chain, compiled, _, _ in costs.grid(rows):
                given, _, direction = what.rpartition(", ")
                pair = ", compiled ".join(text for text in (chain, compiled) if text)
                found.setdefault(given, {})[direction] = pair
        given = next(iter(found), None)  # the first input is the one of the papers
        if given is None:
            continue
        both = found[given].get("forward+backward", "")
        lines.append([_link(op), given, found[given].get("forward", ""), both])
    return _markdown(CPU_HEADER, lines)


def _gpu(ops: list[str], results: Path) -> str:
    """Estimates and floors in bfloat16, channels_last, for the faster of Triton and CUDA C++."""
    lines = []
    for path in sorted(results.rglob(static.FILE)):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        for op in ops:
            chosen = [row for row in rows if row["op"] == op and row["dtype"] == "bfloat16"]
            if not chosen:
                continue
            layouts = {row["layout"] for row in chosen}
            layout = "channels_last" if "channels_last" in layouts else min(layouts)
            shape, options = chosen[0]["shape"], chosen[0]["options"]
            same = [r for r in chosen if r["layout"] == layout and r["shape"] == shape]
            same = [r for r in same if r["options"] == options and r.get("low_us") is not None]
            words = [f"{key} {value}" for key, value in options]
            given = ", ".join(["x".join(map(str, shape)), *words])
            cells = [_estimate([r for r in same if r["pass"] == p]) for p in GPU_HEADER[2:]]
            lines.append([_link(op), given, *cells])
    return _markdown(GPU_HEADER, lines)


def _estimate(rows: list[dict[str, Any]]) -> str:
    if not rows:
        return ""
    best = min(rows, key=lambda row: row["low_us"] + row["high_us"])
    low, high = number(best["low_us"]), number(best["high_us"])
    spread = low if low == high else f"{low} to {high}"
    return f"{spread}, floor {number(best['floor_us'])} ({BACKENDS[best['backend']]})"


def _link(op: str) -> str:
    return f"[`{op}`](docs/ops/{op}.md)"
