"""What the compiled Triton kernels say of their speed on sm_90: launches, code, estimate, floor.

    python -m attnops.benchmarks static [OP...] [--out DIR] [--compare FILE]

Static estimates, not measurements; no GPU is needed. See attnops/benchmarks/static/__init__.py.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..report.grid import Grid, markdown, number, show
from ..report.records import write_whole
from .gate import faults
from .inputs import VARIANTS
from .rows import measure, record

FILE = "static.json"
THRESHOLD = 1.1  # an estimate that has grown by more than that is a regression


def _widths(found: Mapping[str, int]) -> str:
    """{"128": 4, "16": 1} -> "128 x4, 16 x1"."""
    widest_first = sorted(found.items(), key=lambda pair: -int(pair[0]))
    return ", ".join(f"{bits} x{count}" for bits, count in widest_first)


def _name(row: dict[str, Any]) -> str:
    shape = "x".join(map(str, row["shape"]))
    options = " ".join(f"{name} {value}" for name, value in row["options"])
    return ", ".join(part for part in (shape, options) if part)


def _ratio(row: dict[str, Any]) -> str:
    if "low_us" not in row:
        return ""
    low, high = (number(row[key] / row["floor_us"], 2) for key in ("low_us", "high_us"))
    return low if low == high else f"{low} to {high}"


def grid_of(op: str, rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of one op: a line an input, dtype, layout and pass."""
    header = ["input", "dtype", "layout", "pass", "floor us", "estimate us", "x floor"]
    header += ["launches", "ATen", "programs", "registers", "resident", "tensor", "loads", "stores"]
    header += ["bound by", "instr./element"]
    grid = Grid(op, header)
    for row in rows:
        kernels = row["kernels"]
        main = max(kernels, key=lambda kernel: kernel.get("high_us", 0.0))
        times = [number(row[key]) for key in ("low_us", "high_us")] if "low_us" in row else []
        grid.cells.append(
            [
                _name(row),
                row["dtype"],
                row["layout"],
                row["pass"],
                number(row["floor_us"]),
                " to ".join(dict.fromkeys(times)) or main.get("why", ""),
                _ratio(row),
                str(row["launches"]),
                str(len(row["aten"])),
                *(str(main[key]) for key in ("programs", "registers", "resident")),
                str(main.get("tensor_instructions", "")),
                *(_widths(main.get(key, {})) for key in ("loads", "stores")),
                main.get("bound_by", ""),
                number(row.get("instructions_an_element")),
            ]
        )
    spilling = sorted({k["kernel"] for row in rows for k in row["kernels"] if k["spills"]})
    if spilling:
        grid.notes.append(f"local memory in: {', '.join(spilling)}")
    return grid


def grids(document: dict[str, Any]) -> list[Grid]:
    """A table an op."""
    ops = dict.fromkeys(row["op"] for row in document["rows"])
    return [grid_of(op, [row for row in document["rows"] if row["op"] == op]) for op in ops]


def as_markdown(document: dict[str, Any]) -> str:
    """The document as it is committed."""
    head = (
        f"# Triton kernels on {document['arch']}: {document['kind']}\n\n"
        f"Compiled by Triton {document['triton']} in the variants that real calls launch; columns "
        "from `programs` to `bound by` are those of the launch that takes longest. Estimates leave "
        "out bank conflicts, the memory's bandwidth (which is the floor) and gaps between "
        "launches: expect the truth at 1.0 to 1.6 times, and 2 us a launch on top.\n"
    )
    return "\n".join([head, *(markdown(grid) for grid in grids(document))])


def regressions(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Rows whose estimate has grown, or that launch more kernels than before."""

    def keyed(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
        facts = ("op", "shape", "options", "dtype", "layout", "pass")
        return {json.dumps([row[key] for key in facts]): row for row in document["rows"]}

    old, found = keyed(before), []
    for key, row in keyed(after).items():
        if key not in old:
            continue
        was = old[key]
        what = f"{row['op']} {_name(row)} {row['dtype']} {row['layout']} {row['pass']}"
        if row["launches"] > was["launches"]:
            found.append(f"{what}: {was['launches']} -> {row['launches']} launches")
        if "high_us" in was and row.get("high_us", float("inf")) > THRESHOLD * was["high_us"]:
            found.append(f"{what}: {was['high_us']} -> {row.get('high_us', 'no')} us")
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench static", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", choices=[[], *VARIANTS], metavar="OP")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write static.json and static.md")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="exit with 1 on regressions")
    parser.add_argument(
        "--sample",
        action="store_true",
        help="the gate alone, on all launches and on a few kernels, in seconds",
    )
    chosen = parser.parse_args(arguments)
    ops = chosen.ops or list(VARIANTS)
    before = json.loads(chosen.compare.read_text()) if chosen.compare else None
    with tempfile.TemporaryDirectory() as folder:
        if chosen.sample:
            lines = faults(record(ops, Path(folder), sample=True), whole=False)
            return _report("gate", lines)
        document = measure(ops, Path(folder))
    for grid in grids(document):
        show(grid)
    if chosen.out:
        write_whole(chosen.out / FILE, json.dumps(document, indent=1) + "\n")
        write_whole(chosen.out / "static.md", as_markdown(document))
    worse = _report("regression", regressions(before, document) if before else [])
    return _report("gate", faults(document["rows"])) or worse


def _report(kind: str, lines: Sequence[str]) -> int:
    """The exit status after saying what is wrong."""
    for line in lines:
        print(f"{kind}: {line}", file=sys.stderr)
    return 1 if lines else 0
