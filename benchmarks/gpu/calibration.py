"""Measured times beside the estimates of the static report: how far the model can be trusted.

A time is the replay of a CUDA graph where there is one (kernels without their launches from
Python), else by events. The backward's is that of forward and backward less that of the forward.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy

from ..ops.cases import OURS, case_of
from ..ops.definitions import DEFINITIONS
from ..report.grid import Grid, markdown, number
from ..report.records import RESULTS, Row
from ..static.rows import floor_us
from ..static.table import FILE as STATIC
from ..static.words import name_of

FILE = "calibration.json"
KIND = "measured times beside static estimates"
OFF = 2.0  # a ratio beyond which the model is wrong about a row
BOTH, FORWARD, BACKWARD = "forward+backward", "forward", "backward"
Key = tuple[str, ...]


def _key(op: str, row: Mapping[str, Any], passes: str, backend: str) -> Key:
    given = json.dumps([list(row["shape"]), [list(pair) for pair in row["options"]]])
    return op, given, row["dtype"], row["layout"], passes, backend


def estimates(capability: str, folder: Path = RESULTS) -> dict[Key, dict[str, Any]]:
    """Rows of the static report for devices of this compute capability ("9.0")."""
    found = {}
    for path in sorted(folder.rglob(STATIC)):
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.get("arch") != "sm_" + capability.replace(".", ""):
            continue
        for row in document["rows"]:
            if row.get("low_us") is not None:
                backend = row.get("backend", "triton")
                found[_key(row["op"], row, row["pass"], backend)] = row
    return found


def put_estimates(rows: Iterable[Row], known: Mapping[Key, Mapping[str, Any]]) -> None:
    """Put the static estimate beside every measured row of attnops, in its unit."""
    for row in rows:
        found = [known.get(key) for key in _keys(row)] if _is_ours(row) else []
        if found and all(found):
            row.estimate_low = 1e-3 * sum(one["low_us"] for one in found)
            row.estimate_high = 1e-3 * sum(one["high_us"] for one in found)


def _is_ours(row: Row) -> bool:
    return row.table in DEFINITIONS and (row.name == OURS or row.name.startswith(f"{OURS} ("))


def _keys(row: Row) -> list[Key]:
    passes = (FORWARD, BACKWARD) if row.direction == BOTH else (FORWARD,)
    return [_key(row.table, vars(row), one, row.backend) for one in passes]


def _time_us(row: Row) -> tuple[float, str] | None:
    if row.graph_p50:
        return 1e3 * row.graph_p50, "graph"
    return (1e3 * row.p50, "events") if row.p50 else None


def pairs(rows: Sequence[Row], known: Mapping[Key, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A line for every pass that attnops was measured in; an estimate where there is one."""
    times: dict[Key, tuple[Row, float, str]] = {}
    for row in rows:
        if _is_ours(row) and row.backend and (found := _time_us(row)):
            times[_key(row.table, vars(row), row.direction, row.backend)] = (row, *found)
    lines = []
    for key, (row, time, by) in times.items():
        passes = row.direction
        if passes == BOTH:
            before = times.get((*key[:4], FORWARD, key[5]))
            if before is None or before[2] != by:
                continue
            passes, time = BACKWARD, time - before[1]
        estimate = known.get((*key[:4], passes, key[5]))
        lines.append(_line(row, passes, time, by, estimate))
    return lines


def _line(
    row: Row, passes: str, time: float, by: str, estimate: Mapping[str, Any] | None
) -> dict[str, Any]:
    line = {
        "op": row.table,
        "shape": list(row.shape),
        "options": [list(pair) for pair in row.options],
        "dtype": row.dtype,
        "layout": row.layout,
        "pass": passes,
        "backend": row.backend,
        "measured_us": round(time, 3),
        "by": by,
        "host_us": None if row.host_p50 is None else round(1e3 * row.host_p50, 1),
        "host_of": row.direction,
        "floor_us": round(floor_us(case_of(row.table, vars(row)), passes), 2),
    }
    if estimate is not None and time > 0:
        low, high = estimate["low_us"], estimate["high_us"]
        line |= {"low_us": low, "high_us": high, "launches": estimate["launches"]}
        line["ratio"] = round(2 * time / (low + high), 3)
    return line


def _ranks(values: Sequence[float]) -> numpy.ndarray:
    """Ranks; equal values share the mean of theirs."""
    _, inverse, counts = numpy.unique(values, return_inverse=True, return_counts=True)
    last = numpy.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's; None where it is not defined."""
    if len(first) < 3 or numpy.ptp(first) == 0 or numpy.ptp(second) == 0:
        return None
    return float(numpy.corrcoef(first, second)[0, 1])


def statistics(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Correlations of the logarithms, mean ratio, and how many rows are off."""
    known = [line for line in lines if "ratio" in line]
    measured = [math.log(line["measured_us"]) for line in known]
    estimated = [math.log((line["low_us"] + line["high_us"]) / 2) for line in known]
    ratios = [line["ratio"] for line in known]
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios)) if ratios else None
    return {
        "rows": len(known),
        "pearson_of_logs": _rounded(correlation(measured, estimated)),
        "spearman": _rounded(correlation(_ranks(measured), _ranks(estimated)) if known else None),
        "mean_ratio": _rounded(mean),
        "off": sum(is_off(line) for line in known),
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def is_off(line: Mapping[str, Any]) -> bool:
    return "ratio" in line and not 1 / OFF <= line["ratio"] <= OFF


def document_of(
    rows: Sequence[Row],
    known: Mapping[Key, Mapping[str, Any]],
    device: str,
    date: str,
    launch: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """All of it, for calibration.json."""
    lines = pairs(rows, known)
    by_op = {
        op: statistics([line for line in lines if line["op"] == op])
        for op in dict.fromkeys(line["op"] for line in lines)
    }
    by_backend = {
        name: statistics([line for line in lines if line["backend"] == name])
        for name in dict.fromkeys(line["backend"] for line in lines)
    }
    return {
        "kind": KIND,
        "device": device,
        "date": date,
        "smallest_kernel": dict(launch or {}),
        "all": statistics(lines),
        "by_op": by_op,
        "by_backend": by_backend,
        "rows": lines,
        "off": [line for line in lines if is_off(line)],
    }


def _cells(line: Mapping[str, Any]) -> list[str]:
    bounds = [number(line[key]) for key in ("low_us", "high_us") if key in line]
    return [
        f"{line['op']}, {name_of(line)}",
        line["backend"],
        line["dtype"],
        line["layout"],
        line["pass"],
        number(line["floor_us"]),
        " to ".join(dict.fromkeys(bounds)),
        number(line["measured_us"]),
        line["by"],
        number(line.get("ratio")),
        number(line["host_us"]),
        str(line.get("launches", "")),
    ]


HEADER = ["input", "kernels", "dtype", "layout", "pass", "floor us", "estimate us", "measured us"]
HEADER += ["by", "measured / estimate", "launch us", "launches"]


def summary(document: Mapping[str, Any]) -> Grid:
    """Correlations and ratios, of all and by backend and op."""
    header = ["", "rows", "Pearson of logs", "Spearman", "mean ratio", f"off by more than {OFF:g}x"]
    grid = Grid(f"Static estimates against times on {document['device']}", header)
    groups = {"all": document["all"], **document["by_backend"], **document["by_op"]}
    for name, found in groups.items():
        figures = [number(found[k]) for k in ("pearson_of_logs", "spearman", "mean_ratio")]
        grid.cells.append([name, str(found["rows"]), *figures, str(found["off"])])
    smallest = document["smallest_kernel"]
    if smallest:
        times = ", ".join(f"{number(v)} us by {k[:-3]}" for k, v in smallest.items())
        grid.notes.append(f"a kernel of one element takes {times}: no time can be less")
    return grid


def as_markdown(document: Mapping[str, Any]) -> str:
    off = Grid(f"Off by more than {OFF:g}x", HEADER, [_cells(line) for line in document["off"]])
    whole = Grid("Every row", HEADER, [_cells(line) for line in document["rows"]])
    title = f"# {document['device']}, {document['date']}: {document['kind']}\n"
    whole.notes.append(
        "launch us: what a call (of the forward, or of forward and backward) keeps the CPU"
    )
    grids = (summary(document), off, whole)
    return "\n".join([title, *(markdown(grid) for grid in grids if grid.cells)])
