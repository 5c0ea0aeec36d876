"""What an op costs beside the published chain: tables for its page, from committed results."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..apnb.run import TABLE as APNB
from ..report.grid import number
from ..report.records import FORMAT

Row = dict[str, Any]
OURS, CHAIN, COMPILED = "attnops", "eager", "compiled"
LAYOUTS = {"contiguous": "contiguous", "channels_last": "channels last"}
HEADER = (
    "input, pass",
    "attnops, ms",
    "chain, ms",
    "compiled chain, ms",
    "× chain",
    "× compiled",
    "MiB, attnops",
    "MiB, chain",
)


@dataclass(frozen=True)
class Timed:
    """One contender on one input, in the memory format that suits it better."""

    ms: float
    layout: str
    mib: float | None

    def __str__(self) -> str:
        return f"{number(self.ms)} ({LAYOUTS.get(self.layout, self.layout)})"


def _contender(row: Row) -> tuple[str, str]:
    """Who was timed, and which form of a block: "attnops APNB linear" -> attnops, "APNB linear"."""
    who, _, form = row["name"].partition(" ")
    return who, form


def _what(row: Row, form: str) -> str:
    shape = "x".join(map(str, row["shape"]))
    options = [f"{key} {value}" for key, value in row.get("options", ())]
    return ", ".join([*([form] if form else []), shape, *options, row["direction"]])


def _best(rows: Iterable[Row]) -> Timed | None:
    timed = [
        Timed(row["p50"], row["layout"], row["memory_above_inputs"]) for row in rows if row["p50"]
    ]
    return min(timed, key=lambda entry: entry.ms, default=None)


def _cells(what: str, found: dict[str, list[Row]]) -> list[str]:
    ours, chain, compiled = (_best(found.get(name, ())) for name in (OURS, CHAIN, COMPILED))
    if ours is None:
        return []
    ratios = [number(other.ms / ours.ms) if other else "" for other in (chain, compiled)]
    times = ["" if timed is None else str(timed) for timed in (ours, chain, compiled)]
    memory = [number(timed.mib) if timed else "" for timed in (ours, chain)]
    return [what, *times, *ratios, *memory]


def grid(rows: Iterable[Row]) -> list[list[str]]:
    """Cells of the table, an input and pass a line; ratios are of the better formats of both."""
    inputs: dict[str, dict[str, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        who, form = _contender(row)
        inputs[_what(row, form)][who].append(row)
    cells = [_cells(what, found) for what, found in inputs.items()]
    return [line for line in cells if line]


def sources(op: str, results: Path) -> Iterator[tuple[list[Path], list[Row], Row]]:
    """Files with rows of `op` for each folder of a CPU's results, the rows, and an environment."""
    tables = {op} | ({APNB} if op == "anchor_attention" else set())
    for folder in sorted(results.glob("cpu-*")):
        files, rows, environment = [], [], {}
        for path in sorted(folder.rglob("*.json")):
            data = json.loads(path.read_text())
            if data.get("format") != FORMAT:
                continue
            here = [row for row in data["rows"] if row["table"] in tables]
            if here:
                files.append(path)
                rows += here
                environment = data["environment"]
        if rows:
            yield files, rows, environment


def section(op: str, results: Path) -> str:
    """Markdown: a table for each CPU that was measured, and the files that it comes from."""
    parts = []
    for files, rows, environment in sources(op, results):
        cpu, versions = environment["cpu"], environment["versions"]
        paths = [path.relative_to(results.parents[1]).as_posix() for path in files]
        links = ", ".join(
            f"[{Path(path).stem}](../../{re.sub('json$', 'md', path)})" for path in paths
        )
        parts.append(
            f"{rows[0]['dtype']}, {cpu['threads']} threads of an {cpu['model']} "
            f"({cpu['capability']}), torch {versions['torch']}, medians, each contender "
            f"in its better memory format; MiB: peak beyond the input. All rows: {links}."
        )
        lines = [f"| {' | '.join(HEADER)} |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
        lines += [f"| {' | '.join(cells)} |" for cells in grid(rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Nothing is measured yet."
