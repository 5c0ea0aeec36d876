"""What the compiled Triton kernels say of their speed on sm_90: launches, code, estimate, floor.

    python -m attnops.benchmarks static [OP...] [--out DIR] [--compare FILE]

Static estimates, not measurements; no GPU is needed. See attnops/benchmarks/static/__init__.py.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..ops.cases import OpCase, case_of
from ..report.grid import Grid, markdown, number, show
from ..report.records import write_whole
from .costs import Traffic
from .estimate import Code, estimate, load_code
from .inputs import VARIANTS

KIND = "static estimate, not measured"
FILE = "static.json"
COPY_BYTES_A_US = 4.3e6  # measured on an H200
# Multiply-adds a microsecond of the unit that can do them: tensor cores for products (float32 in
# three TF32 products), else float32 pipes.
TENSOR = {"bfloat16": 989e6 / 2, "float32": 495e6 / 2 / 3}
PIPES = 67e6 / 2
PRODUCTS = ("anchor_attention", "local_attention", "nmf")
THRESHOLD = 1.1  # an estimate that has grown by more than that is a regression


def floor_us(case: OpCase, direction: str) -> float:
    """Time that bytes or multiply-adds of one pass need at least."""

    def cost(of: str) -> tuple[int, int]:
        one = OpCase(case.op, case.shape, case.dtype, case.layout, of, case.options)
        return one.moved_bytes(), one.macs()

    moved, macs = cost("forward")
    if direction == "backward":
        both = cost("forward+backward")
        moved, macs = both[0] - moved, both[1] - macs
    rate = TENSOR[case.dtype] if case.op in PRODUCTS else PIPES
    return max(moved / COPY_BYTES_A_US, macs / rate)


def _widths(found: dict[int, int]) -> str:
    """{128: 4, 16: 1} -> "128 x4, 16 x1"."""
    return ", ".join(f"{bits} x{count}" for bits, count in sorted(found.items(), reverse=True))


def _kernel(code: Code, variant: dict[str, Any], launch: dict[str, Any]) -> dict[str, Any]:
    """The columns of one launch."""
    row = {
        "kernel": variant["kernel"],
        "programs": launch["programs"],
        "threads": 32 * code.warps,
        "registers": code.registers,
        "shared": code.shared,
        "resident": code.resident,
        "limit": code.limit,
        "spills": code.spills,
    }
    loops = launch["loops"]
    if loops is None:
        return row | {"why": launch["why"]}
    found = estimate(code, launch["programs"], loops)
    hottest = code.pieces[found.hottest].piece
    traffic = Traffic.of(hottest.instructions)
    tensor = sum(i.base in ("HGMMA", "HMMA") for i in hottest.instructions)
    return row | {
        "low_us": round(found.low, 2),
        "high_us": round(found.high, 2),
        "bound_by": found.bound_by,
        "warp_instructions": round(found.instructions),
        "hottest": f"{hottest.file}:{hottest.line}" if hottest.line else "outside loops",
        "hottest_instructions": len(hottest.instructions),
        "tensor_instructions": tensor,
        "loads": _widths(traffic.loads),
        "stores": _widths(traffic.stores),
    }


def rows_of(folder: Path) -> list[dict[str, Any]]:
    """A row an input and pass, from what `launches` left in a folder."""
    recorded = json.loads((folder / "launches.json").read_text())
    variants = recorded["variants"]

    @functools.cache
    def code_of(tag: str) -> Code:
        return load_code(folder / f"{tag}.cubin", variants[tag])

    rows = []
    for found in recorded["rows"]:
        case = case_of(found["op"], found)
        tags = [launch["variant"] for launch in found["launches"]]
        kernels = [
            _kernel(code_of(tag), variants[tag], launch)
            for tag, launch in zip(tags, found["launches"], strict=True)
        ]
        floor = floor_us(case, found["pass"])
        row = {key: value for key, value in found.items() if key not in ("launches", "direction")}
        row |= {"floor_us": round(floor, 2), "launches": len(kernels)}
        if all("low_us" in kernel for kernel in kernels):
            row["low_us"] = round(max(floor, sum(k["low_us"] for k in kernels)), 1)
            row["high_us"] = round(max(floor, sum(k["high_us"] for k in kernels)), 1)
            spent = sum(k["warp_instructions"] * k["programs"] * k["threads"] for k in kernels)
            row["instructions_an_element"] = round(spent / torch.Size(case.shape).numel(), 1)
        rows.append(row | {"kernels": kernels})
    return rows


def measure(ops: Iterable[str], folder: Path, arch: int = 90) -> dict[str, Any]:
    """The whole document for some ops; each is compiled in a process of its own."""
    import triton

    rows = []
    for op in ops:
        command = [sys.executable, "-m", "attnops.benchmarks.static.launches"]
        # Kernels out of Triton's cache may name source files that have moved since.
        environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")}
        command += [str(folder / op), op, "--arch", str(arch)]
        subprocess.run(command, check=True, env=environment)
        rows += rows_of(folder / op)
        print(f"{op}: {len(rows)} rows so far", file=sys.stderr, flush=True)
    return {"kind": KIND, "arch": f"sm_{arch}", "triton": triton.__version__, "rows": rows}


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
                *(main.get(key, "") for key in ("loads", "stores", "bound_by")),
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
    chosen = parser.parse_args(arguments)
    before = json.loads(chosen.compare.read_text()) if chosen.compare else None
    with tempfile.TemporaryDirectory() as folder:
        document = measure(chosen.ops or VARIANTS, Path(folder))
    for grid in grids(document):
        show(grid)
    if chosen.out:
        write_whole(chosen.out / FILE, json.dumps(document, indent=1) + "\n")
        write_whole(chosen.out / "static.md", as_markdown(document))
    worse = regressions(before, document) if before else []
    for line in worse:
        print(f"regression: {line}", file=sys.stderr)
    return 1 if worse else 0
