"""What the compiled Triton kernels say of their speed on sm_90: launches, code, estimate, floor.

    python -m attnops.benchmarks static [OP...] [--out DIR] [--compare FILE]

Static estimates, not measurements; no GPU is needed. See attnops/benchmarks/static/__init__.py.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnops._console import positive_integer

from ..report.grid import Grid, markdown, number, show
from ..report.records import write_whole
from .compare import regressions
from .gate import faults
from .inputs import VARIANTS
from .words import name_of

FILE, FIRST_CALLS = "static.json", "first-call.json"


def _widths(found: Mapping[str, int]) -> str:
    """{"128": 4, "16": 1} -> "128 x4, 16 x1"."""
    widest_first = sorted(found.items(), key=lambda pair: -int(pair[0]))
    return ", ".join(f"{bits} x{count}" for bits, count in widest_first)


def _ratio(row: dict[str, Any]) -> str:
    if "low_us" not in row:
        return ""
    low, high = (number(row[key] / row["floor_us"], 2) for key in ("low_us", "high_us"))
    return low if low == high else f"{low} to {high}"


def grid_of(op: str, rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of one op: a line an input, dtype, layout and pass."""
    header = ["input", "kernels", "dtype", "layout", "pass", "floor us", "estimate us", "x floor"]
    header += ["launches", "ATen", "programs", "registers", "resident", "tensor", "loads", "stores"]
    header += ["sectors", "conflicts", "bound by", "instr./element"]
    grid = Grid(op, header)
    for row in rows:
        kernels = row["kernels"]
        main = max(kernels, key=lambda kernel: kernel.get("high_us", 0.0))
        times = [number(row[key]) for key in ("low_us", "high_us")] if "low_us" in row else []
        grid.cells.append(
            [
                name_of(row),
                row.get("backend", "triton"),
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
                *(number(main.get(key)) for key in ("sectors", "conflicts")),
                main.get("bound_by", ""),
                number(row.get("instructions_an_element")),
            ]
        )
    spilling = sorted({k["kernel"] for row in rows for k in row["kernels"] if k["spills"]})
    if spilling:
        grid.notes.append(f"local memory in: {', '.join(spilling)}")
    return grid


def resources_of(op: str, arch: str, rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of an architecture without a model: a line a kernel and variant."""
    header = ["kernel", "layout", "pass", "registers", "shared", "spills", "tensor"]
    grid = Grid(f"{op} on {arch}", [*header, "loads", "stores"])
    cells = {
        (
            kernel["kernel"],
            row["layout"],
            row["pass"],
            *(str(kernel[key]) for key in ("registers", "shared", "spills")),
            str(kernel.get("tensor_instructions", "")),
            *(_widths(kernel.get(key, {})) for key in ("loads", "stores")),
        ): None
        for row in rows
        for kernel in row["kernels"]
    }
    grid.cells += cells
    return grid


def grids(document: dict[str, Any]) -> list[Grid]:
    """A table an op, and one for every architecture without a model."""
    found = []
    for op in dict.fromkeys(row["op"] for row in document["rows"]):
        found.append(grid_of(op, [row for row in document["rows"] if row["op"] == op]))
        for arch, rows in document.get("others", {}).items():
            found.append(resources_of(op, arch, [row for row in rows if row["op"] == op]))
    found.append(host_times(document.get("host", ())))
    return [grid for grid in found if grid.cells]


def host_times(rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of CPU times of calls."""
    grid = Grid("CPU time of a call", ["op", "kernels", "forward us", "forward + backward us"])
    for row in rows:
        times = [number(row.get(key)) for key in ("forward_us", "both_us")]
        grid.cells.append([row["op"], row["backend"], *times])
    grid.notes.append(
        "measured on a CUDA runtime with no GPU behind it, bfloat16, the first input of the op, on "
        "one processor; the least of the medians of 41 calls; a real driver takes another 2 "
        "to 3 us a launch"
    )
    return grid


def as_markdown(document: dict[str, Any]) -> str:
    """The document as it is committed."""
    head = (
        f"# GPU kernels on {document['arch']}: {document['kind']}\n\n"
        f"Compiled by Triton {document['triton']} in the variants that real calls launch; columns "
        "from `programs` to `bound by` are those of the launch that takes longest. `sectors` are "
        "those of 32 bytes that warps' global accesses touch, over the least for so many bytes; "
        "`conflicts` are turns of the banks of shared memory, likewise. Estimates leave out the "
        "memory's bandwidth (which is the floor) and gaps between launches: expect the truth at "
        "1.0 to 1.6 times, and 2 us a launch on top. What the last program to arrive does (in nmf) "
        "is counted once a launch, after all others.\n"
    )
    return "\n".join([head, *(markdown(grid) for grid in grids(document))])


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench static", description=__doc__.splitlines()[0])
    parser.add_argument("ops", nargs="*", choices=[[], *VARIANTS], metavar="OP")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write static.json and static.md")
    parser.add_argument(
        "--whole",
        action="store_true",
        help="with CUDA kernels, sm_80 and sm_100, as --out does: takes minutes more",
    )
    parser.add_argument("--compare", type=Path, metavar="FILE", help="exit with 1 on regressions")
    parser.add_argument(
        "--jobs", type=positive_integer, default=len(os.sched_getaffinity(0)), help="processes"
    )
    parser.add_argument(
        "--sample",
        action="store_true",
        help="the gate alone, on all launches and on a few kernels, in seconds",
    )
    parser.add_argument(
        "--first-call",
        action="store_true",
        help="how long each op's variants compile instead; --out writes first-call.json and .md",
    )
    chosen = parser.parse_args(arguments)
    ops = chosen.ops or list(VARIANTS)
    before = json.loads(chosen.compare.read_text()) if chosen.compare else None
    from .launches import SAMPLE  # Triton is needed to measure, not to show what was measured
    from .measure import measure, record, record_first_calls

    with tempfile.TemporaryDirectory() as folder:
        if chosen.sample:
            return _report("gate", faults(record(ops, Path(folder), part=SAMPLE), whole=False))
        if chosen.first_call:
            return _show_first_calls(record_first_calls(ops, Path(folder)), chosen.out)
        whole = chosen.whole or chosen.out is not None
        document, failures = measure(ops, Path(folder), chosen.jobs, whole)
    for grid in grids(document):
        show(grid)
    if chosen.out:
        write_whole(chosen.out / FILE, json.dumps(document, indent=1) + "\n")
        write_whole(chosen.out / "static.md", as_markdown(document))
    status = _report("failed", failures)
    status |= _report("regression", regressions(before, document) if before else [])
    return _report("gate", faults(document["rows"])) | status


def _show_first_calls(rows: Sequence[dict[str, Any]], out: Path | None) -> int:
    from .first_call import as_markdown, document, totals

    show(totals(rows))
    if out is not None:
        found = document(rows)
        write_whole(out / FIRST_CALLS, json.dumps(found, indent=1) + "\n")
        write_whole((out / FIRST_CALLS).with_suffix(".md"), as_markdown(found))
    return 0


def _report(kind: str, lines: Sequence[str]) -> int:
    """The exit status after saying what is wrong."""
    for line in lines:
        print(f"{kind}: {line}", file=sys.stderr)
    return 1 if lines else 0
