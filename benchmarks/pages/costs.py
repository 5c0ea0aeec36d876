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
MALLOC = {"": "", "default": "", "kept": "memory kept"}  # a setting of glibc in words
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
class Input:
    """What is timed: an input, a setting of glibc and a pass."""

    given: str
    malloc: str
    direction: str

    def __str__(self) -> str:
        return ", ".join(filter(None, (self.given, MALLOC[self.malloc], self.direction)))


@dataclass(frozen=True)
class Timed:
    """One contender on one input, in the memory format that suits it better."""

    ms: float
    layout: str
    mib: float | None
    floor_ms: float | None = None

    def __str__(self) -> str:
        return f"{number(self.ms)} ({LAYOUTS.get(self.layout, self.layout)})"


def _contender(row: Row) -> tuple[str, str]:
    """Who was timed, and which form of a block: "attnops APNB linear" -> attnops, "APNB linear"."""
    who, _, form = row["name"].partition(" ")
    return who, form


def _input(row: Row, form: str) -> Input:
    shape = "x".join(map(str, row["shape"]))
    options = [f"{key} {value}" for key, value in row.get("options", ())]
    given = ", ".join([*([form] if form else []), shape, *options])
    return Input(given, row.get("malloc", ""), row["direction"])


def entries(rows: Iterable[Row]) -> dict[Input, dict[str, Timed]]:
    """Input -> contender -> its time in its better format; inputs that ours ran on."""
    found: dict[Input, dict[str, Timed]] = defaultdict(dict)
    for row in rows:
        who, form = _contender(row)
        if not row["p50"]:
            continue
        facts = (row["p50"], row["layout"], row["memory_above_inputs"], row.get("floor_ms"))
        timed, best = Timed(*facts), found[_input(row, form)]
        if who not in best or timed.ms < best[who].ms:
            best[who] = timed
    return {what: best for what, best in found.items() if OURS in best}


def ratio(best: dict[str, Timed], other: str) -> str:
    """Time of another contender over ours, each in its better format."""
    return number(best[other].ms / best[OURS].ms) if other in best else ""


def grid(rows: Iterable[Row]) -> list[list[str]]:
    """Cells of the table, an input and pass a line; ratios are of the better formats of both."""
    cells = []
    for what, best in entries(rows).items():
        times = [str(best.get(who, "")) for who in (OURS, CHAIN, COMPILED)]
        ratios = [ratio(best, who) for who in (CHAIN, COMPILED)]
        memory = [number(best[who].mib) if who in best else "" for who in (OURS, CHAIN)]
        cells.append([str(what), *times, *ratios, *memory])
    return cells


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
        kept = [row for row in rows if MALLOC[row.get("malloc", "")]]
        once = bool(kept) and not any(row["memory_method"] for row in kept)
        parts.append(
            f"{rows[0]['dtype']}, {cpu['threads']} threads of an {cpu['model']} "
            f"({cpu['capability']}), torch {versions['torch']}, medians, each contender "
            f"in its better memory format; MiB: peak beyond the input"
            f"{', with glibc as it is' if once else ''}. All rows: {links}."
        )
        lines = [f"| {' | '.join(HEADER)} |", "| --- |" + " ---: |" * (len(HEADER) - 1)]
        lines += [f"| {' | '.join(cells)} |" for cells in grid(rows)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) or "Nothing is measured yet."
