"""The two tables of README.md: every op on a CPU, and the estimates of its GPU kernels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..static import table as static
from ..static.words import estimate, name_of, preferred
from . import costs

CPU_HEADER = ("op", "input", "forward", "forward + backward")
GPU_HEADER = ("op", "input", "forward", "backward")
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
        found: dict[str, dict[tuple[str, str], str]] = {}
        for _, rows, _ in costs.sources(op, results):
            for what, best in costs.entries(rows).items():
                ratios = [costs.ratio(best, who) for who in (costs.CHAIN, costs.COMPILED)]
                key = (what.direction, costs.MALLOC[what.malloc])
                text = ", compiled ".join(filter(None, ratios))
                found.setdefault(what.given, {})[key] = text
        given = next(iter(found), None)  # the first input is the one of the papers
        if given is not None:
            cells = [_settings(found[given], d) for d in ("forward", "forward+backward")]
            lines.append([_link(op), given, *cells])
    return _markdown(CPU_HEADER, lines)


def _settings(ratios: dict[tuple[str, str], str], direction: str) -> str:
    """The ratios of a pass under every setting of glibc that was measured."""
    chosen = {malloc: text for (d, malloc), text in ratios.items() if d == direction}
    return "; ".join(f"{malloc}: {text}" if malloc else text for malloc, text in chosen.items())


def _gpu(ops: list[str], results: Path) -> str:
    lines = []
    for path in sorted(results.rglob(static.FILE)):
        rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
        lines += [[_link(op), *cells] for op, *cells in gpu_lines(ops, rows)]
    return _markdown(GPU_HEADER, lines)


def gpu_lines(ops: list[str], rows: list[dict[str, Any]]) -> list[list[str]]:
    """Op, input, and the estimates and floors of both passes on the op's first input."""
    lines = []
    for op in ops:
        chosen = preferred(rows, op)
        if chosen:
            given = name_of(chosen[0], ", ")
            same = [row for row in chosen if name_of(row, ", ") == given]
            cells = [estimate([r for r in same if r["pass"] == p]) for p in GPU_HEADER[2:]]
            lines.append([op, given, *cells])
    return lines


def _link(op: str) -> str:
    return f"[`{op}`](docs/ops/{op}.md)"
