"""The curves as one picture: a line of panels a sweep, time and memory, log-log."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from matplotlib import pyplot

from ..report.plots import STYLE, colour, save
from ..report.records import Row
from .fit import exponent, last
from .table import Curve, curves

COLUMNS = (("ms", "ms, median"), ("mib", "MiB beyond input and output"))


def draw(rows: Iterable[Row], path: str | Path) -> None:
    found = curves(rows)
    sweeps = list(dict.fromkeys(curve.sweep for curve in found))
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            len(sweeps), 2, figsize=(10, 3.2 * len(sweeps)), squeeze=False
        )
        for line, sweep in zip(panels, sweeps, strict=True):
            chosen = [curve for curve in found if curve.sweep == sweep]
            for axes, (quantity, label) in zip(line, COLUMNS, strict=True):
                _panel(axes, chosen, quantity, label)
        figure.tight_layout()
        save(figure, path)


def _panel(axes: Any, found: list[Curve], quantity: str, label: str) -> None:
    for curve in found:
        points = [(x, y) for x, y in zip(curve.x, getattr(curve, quantity), strict=True) if y]
        if not points:
            continue
        slope = exponent(*zip(*last(points), strict=True))
        name = curve.title if slope is None else f"{curve.title} (^{slope:.2f})"
        style = "--" if curve.malloc == "kept" else "-"
        axes.plot(
            *zip(*points, strict=True), style, marker="o", color=colour(curve.name), label=name
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    values = sorted({x for curve in found for x in curve.x})
    axes.set_xticks(values, [str(value) for value in values])
    axes.minorticks_off()
    axes.set_xlabel(found[0].label)
    axes.set_ylabel(label)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend(frameon=False, fontsize=8)
