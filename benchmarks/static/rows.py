"""Rows of the static report: one an input and pass, from the launches that were recorded."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..ops.cases import OpCase, case_of
from .costs import Traffic
from .estimate import Code, Estimate, PieceCost, estimate, load_code

KIND = "static estimate, not measured"
COPY_BYTES_A_US = 4.3e6  # measured on an H200
# Multiply-adds a microsecond of the unit that can do them: tensor cores for products (float32 in
# three TF32 products), else float32 pipes.
TENSOR = {"bfloat16": 989e6 / 2, "float32": 495e6 / 2 / 3}
PIPES = 67e6 / 2
PRODUCTS = ("anchor_attention", "local_attention", "nmf")


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


def _traffic(pieces: Sequence[PieceCost], found: Estimate) -> dict[str, Any]:
    """Loads and stores of the hottest piece of code that has any, by their width in bits.

    And of all bytes that a thread loads, and stores, those in accesses of 128 bits.
    """
    row: dict[str, Any] = {}
    hottest_first = sorted(range(len(pieces)), key=lambda i: -found.spent[i])
    for name in ("loads", "stores"):
        widths = [getattr(Traffic.of(part.piece.instructions), name) for part in pieces]
        shown = next((widths[i] for i in hottest_first if widths[i]), {})
        row[name] = {str(bits): count for bits, count in shown.items()}
        total = wide = 0.0
        for trips, counts in zip(found.trips, widths, strict=True):
            total += trips * sum(bits * count for bits, count in counts.items())
            wide += trips * 128 * counts.get(128, 0)
        row[f"wide_{name}"] = round(wide / total, 3) if total else 1.0
    return row


def _kernel(code: Code, launch: dict[str, Any]) -> dict[str, Any]:
    """The columns of one launch."""
    row = {
        "kernel": launch["kernel"],
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
    hottest = max(zip(found.spent, code.pieces, strict=True), key=lambda pair: pair[0])[1].piece
    tensor = sum(i.base in ("HGMMA", "HMMA") for i in hottest.instructions)
    return row | {
        "low_us": round(found.low, 2),
        "high_us": round(found.high, 2),
        "bound_by": found.bound_by,
        "warp_instructions": round(found.instructions),
        "hottest": f"{hottest.file}:{hottest.line}" if hottest.line else "outside loops",
        "hottest_instructions": len(hottest.instructions),
        "tensor_instructions": tensor,
        **_traffic(code.pieces, found),
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
        kernels = [
            _kernel(code_of(launch["variant"]), launch) if "variant" in launch else dict(launch)
            for launch in found["launches"]
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


def record(ops: Sequence[str], folder: Path, arch: int = 90, sample: bool = False) -> list:
    """Rows of some ops, recorded and compiled in a process of its own."""
    command = [sys.executable, "-m", "attnops.benchmarks.static.launches"]
    # Kernels out of Triton's cache may name source files that have moved since.
    environment = os.environ | {"TRITON_CACHE_DIR": str(folder / "cache")}
    environment.pop("TRITON_INTERPRET", None)
    command += [str(folder), *ops, "--arch", str(arch), *(["--sample"] if sample else [])]
    subprocess.run(command, check=True, env=environment)
    return rows_of(folder)


def measure(ops: Iterable[str], folder: Path, arch: int = 90) -> dict[str, Any]:
    """The whole document for some ops; each is compiled in a process of its own."""
    import triton

    rows = []
    for op in ops:
        rows += record([op], folder / op, arch)
        print(f"{op}: {len(rows)} rows so far", file=sys.stderr, flush=True)
    return {"kind": KIND, "arch": f"sm_{arch}", "triton": triton.__version__, "rows": rows}
