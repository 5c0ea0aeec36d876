"""Pictures of results (matplotlib)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

from .grid import number
from .records import Row

OURS, COMPILED, EAGER, NON_LOCAL = "#1f6fb4", "#d98c2b", "#8c8c8c", "#4d4d4d"
STYLE = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}


def colour(name: str) -> str:
    """Of a contender."""
    if name.startswith("attnops"):
        return OURS
    if name.startswith("compiled"):
        return COMPILED
    return NON_LOCAL if "non-local" in name else EAGER


def save(figure: Any, path: str | Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
    pyplot.close(figure)


def plot_kinds(found: dict[str, Any], path: str | Path) -> None:
    """Figure 2: a group of bars for each kind of operation, one bar a block, log scale."""
    blocks = found["blocks"]
    largest = max(times["total"] for times in blocks.values())
    kinds = [
        kind
        for kind in next(iter(blocks.values()))
        if any(times[kind] > 2e-3 * largest for times in blocks.values())
    ]
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(1.9 + 1.45 * len(kinds), 4.2))
        width = 0.8 / len(blocks)
        for i, (name, times) in enumerate(blocks.items()):
            shown = [(j, times[kind]) for j, kind in enumerate(kinds) if times[kind] > 0]
            places = [j + (i - (len(blocks) - 1) / 2) * width for j, _ in shown]
            heights = [value for _, value in shown]
            axes.bar(places, heights, 0.92 * width, color=colour(name), label=name)
            for place, value in zip(places, heights, strict=True):
                text = number(value, 2)
                axes.annotate(text, (place, value), (0, 2), textcoords="offset points", ha="center")
        axes.set_yscale("log")
        axes.set_ylim(2e-3 * largest, 3 * largest)
        axes.set_xticks(range(len(kinds)), kinds)
        axes.set_ylabel("ms per run (log scale)")
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
        height, width_ = found["shape"][2:]
        axes.set_title(
            f"Time by kind of operation, {height}x{width_}, {found['dtype']}\n{found['device']}",
            loc="left",
        )
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 1.0), ncols=len(blocks))
        save(figure, path)


def plot_table(rows: Sequence[Row], path: str | Path) -> None:
    """Time and memory of every contender, one line of panels an input that was measured."""
    groups = [list(group) for _, group in groupby(rows, lambda row: row.input)]
    groups = [group for group in groups if any(row.p50 for row in group)]
    if not groups:
        return
    heights = [len(group) for group in groups]
    with pyplot.rc_context(STYLE):
        figure, panels = pyplot.subplots(
            len(groups),
            2,
            figsize=(12, sum(0.3 * n + 1.0 for n in heights)),
            squeeze=False,
            gridspec_kw={"height_ratios": heights, "hspace": 0.5, "wspace": 0.08},
        )
        for group, (left, right) in zip(groups, panels, strict=True):
            times = [row.p50 for row in group]
            slow = [row.p80 for row in group]
            _bars(left, group, times, "ms, median (whiskers: p20 to p80)", slow)
            for place, row in enumerate(group):
                if row.p50:
                    left.plot([row.p20, row.p80], [place, place], color="black", linewidth=1)
            memory = [row.memory_above_inputs_and_output for row in group]
            _bars(right, group, memory, "MiB beyond input and output")
            right.tick_params(labelleft=False)
            row = group[0]
            title = f"{list(row.shape)}, {row.dtype}, {row.layout}, {row.direction}, {row.device}"
            left.set_title(title, loc="left")
        save(figure, path)


def _bars(
    axes: Any,
    rows: Sequence[Row],
    values: Sequence[float | None],
    label: str,
    ends: Sequence[float | None] | None = None,
) -> None:
    """Bars with their values written behind `ends` (default: the bars' own)."""
    known = [value or 0.0 for value in values]
    ends = [max(pair) for pair in zip(known, (end or 0.0 for end in ends or known), strict=True)]
    axes.barh(range(len(rows)), known, 0.75, color=[colour(row.name) for row in rows])
    for place, value in enumerate(values):
        text = "not measured" if value is None else number(value)
        axes.annotate(text, (ends[place], place), (4, 0), textcoords="offset points", va="center")
    axes.set_yticks(range(len(rows)), [row.name for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.15 * max([*ends, 1e-9]))
    axes.set_xlabel(label)
    axes.grid(axis="x", alpha=0.3)
    axes.set_axisbelow(True)


def plot_ratios(ratios: dict[str, dict[str, float]], path: str | Path) -> None:
    """Times of each op's contenders over ours, log scale; the line is ours."""
    names = list(dict.fromkeys(name for found in ratios.values() for name in found))
    with pyplot.rc_context(STYLE):
        figure, axes = pyplot.subplots(figsize=(8, 0.42 * len(ratios) + 1.2))
        height = 0.8 / len(names)
        for i, name in enumerate(names):
            shown = [(j, found[name]) for j, found in enumerate(ratios.values()) if name in found]
            places = [j + (i - (len(names) - 1) / 2) * height for j, _ in shown]
            values = [value for _, value in shown]
            axes.barh(places, values, 0.92 * height, color=colour(name), label=name)
            for place, value in zip(places, values, strict=True):
                text, at = number(value), (max(value, 1.0), place)
                axes.annotate(text, at, (4, 0), textcoords="offset points", va="center")
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        largest = max(value for found in ratios.values() for value in found.values())
        axes.set_xlim(0.5, 2 * largest)
        axes.axvline(1, color=OURS, linewidth=1.5)
        axes.set_yticks(range(len(ratios)), list(ratios))
        axes.invert_yaxis()
        axes.set_xlabel("time over ours, each in its better memory format (log scale)")
        axes.legend(frameon=False, loc="lower right")
        save(figure, path)
