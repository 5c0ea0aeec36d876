"""Compile every kernel ahead of time and table what it takes: `python -m attnops.kernels.aot`.

Needs no GPU. Every Triton kernel is compiled in exactly the variants that are launched, for each
architecture, and every CUDA source with the flags of the library's build. The table (registers,
spills, shared memory) goes to build/aot/resources.md and resources.json. The exit status is 1 if a
kernel spills registers, takes more than the smallest supported GPU has, does not compile, or
is in the sources but not in the table.
"""

from __future__ import annotations

import argparse
import collections
import json
import multiprocessing
import os
import subprocess
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

from attnops._console import command, positive_integer

from .._launch import INTERPRETED
from . import cuda as aot_cuda
from . import triton as aot_triton

CAPABILITIES = (80, 90, 100)
SHARED_LIMIT = 99 * 1024  # what a block can have on 8.6, 8.9 and 12.0; others have more
REGISTER_FILE = 65536


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    kind: str  # "triton" or "cuda"
    kernel: str
    arch: str
    variant: str
    registers: int
    spill_stores: int
    spill_loads: int
    shared: int
    threads: int | None = None

    def fault(self) -> str:
        """Why this row fails the check, else ""."""
        if self.spill_stores or self.spill_loads:
            return f"spills {self.spill_stores} bytes out, {self.spill_loads} bytes in"
        if self.shared > SHARED_LIMIT:
            return f"{self.shared} bytes of shared memory, expected at most {SHARED_LIMIT}"
        if self.threads and self.registers * self.threads > REGISTER_FILE:
            return f"{self.registers} registers a thread do not fit {self.threads} threads"
        return ""


def triton_rows(index: int, capability: int) -> list[Row]:
    """The row of one of `all_cases()`."""
    case = aot_triton.all_cases()[index]
    found, threads = aot_triton.compile_case(case, capability)
    return [Row(kind="triton", variant=aot_triton.label(case), threads=threads, **_row(found))]


def cuda_rows(case: aot_cuda.CudaCase) -> list[Row]:
    """The rows of one CUDA source."""
    rows = []
    for found in aot_cuda.compile_cuda(case):
        values = _row(found)
        name = values.pop("kernel")
        rows.append(Row(kind="cuda", kernel=aot_cuda.base_name(name), variant=name, **values))
    return rows


def _row(found: aot_triton.Resources) -> dict[str, object]:
    values = asdict(found)
    values["kernel"] = values.pop("name")
    return values


def missing(rows: Iterable[Row], kind: str, expected: Iterable[str]) -> list[str]:
    """Kernels of the sources that no row covers."""
    listed = {row.kernel for row in rows if row.kind == kind}
    return sorted(set(expected) - listed)


def verify(rows: Sequence[Row], triton: Iterable[str], cuda: Iterable[str]) -> list[str]:
    """What is wrong: rows with faults, and kernels of the sources (by name) without a row."""
    faults = [f"{r.kernel} {r.arch} {r.variant}: {r.fault()}" for r in rows if r.fault()]
    faults += [
        f"{name}: a Triton kernel that no aot_cases() lists"
        for name in missing(rows, "triton", triton)
    ]
    faults += [
        f"{name}: a CUDA kernel that no source instantiates" for name in missing(rows, "cuda", cuda)
    ]
    return faults


def markdown(rows: Sequence[Row]) -> str:
    """The table, one row a kernel, variant and architecture."""
    lines = [
        "# Resources of the kernels",
        "",
        "Compiled ahead of time. Shared memory in bytes: all of it for Triton, static arrays alone",
        "for CUDA. Spills in bytes, out / in.",
        "",
        "| kernel | arch | registers | spills | shared | threads | variant |",
        "|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        spills = f"{row.spill_stores} / {row.spill_loads}"
        cells = (row.kernel, row.arch, row.registers, spills, row.shared, row.threads or "")
        lines.append("| " + " | ".join(map(str, (*cells, f"`{row.variant}`"))) + " |")
    return "\n".join(lines) + "\n"


def summary(rows: Sequence[Row]) -> str:
    """One line a kernel and architecture: variants, and the most of everything."""
    groups = collections.defaultdict(list)
    for row in rows:
        groups[row.kind, row.kernel, row.arch].append(row)
    lines = [f"{'kernel':<34} {'arch':<8} variants  registers  shared  spilling"]
    for (_, kernel, arch), found in sorted(groups.items()):
        registers, shared = max(r.registers for r in found), max(r.shared for r in found)
        spilling = sum(bool(r.spill_stores or r.spill_loads) for r in found)
        lines.append(
            f"{kernel:<34} {arch:<8} {len(found):>8} {registers:>10} {shared:>7} {spilling:>9}"
        )
    return "\n".join(lines)


@command
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attnops.kernels.aot", description=__doc__)
    parser.add_argument("--out", type=Path, default=aot_cuda.ROOT / "build" / "aot")
    parser.add_argument("--arch", type=int, nargs="+", default=CAPABILITIES, help="80 90 100 ...")
    parser.add_argument(
        "--jobs", type=positive_integer, default=min(8, len(os.sched_getaffinity(0)))
    )
    parser.add_argument("--only", default="", help="Triton kernels with this in their names alone")
    parser.add_argument("--no-cuda", action="store_true", help="leave the CUDA sources out")
    options = parser.parse_args(arguments)
    if INTERPRETED:
        parser.error("TRITON_INTERPRET=1 is set: nothing is compiled under the interpreter")

    cuda, skipped = ([], "left out") if options.no_cuda else aot_cuda.cuda_cases()
    indices = [
        index
        for index, case in enumerate(aot_triton.all_cases())
        if options.only in case.kernel.__name__
    ]
    started = time.monotonic()
    rows, faults = [], []
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        # The long ones first.
        tasks = {pool.submit(cuda_rows, case): case.label for case in cuda}
        for index in indices:
            name = aot_triton.label(aot_triton.all_cases()[index])
            for capability in filter(aot_triton.all_cases()[index].runs_on, options.arch):
                kernel = aot_triton.all_cases()[index].kernel.__name__
                task = pool.submit(triton_rows, index, capability)
                tasks[task] = f"{kernel} sm_{capability} {name}"
        for task in as_completed(tasks):
            try:
                rows += task.result()
            except subprocess.CalledProcessError as error:
                faults.append(f"{tasks[task]}: does not compile\n{error.stderr}")
            except Exception as error:
                faults.append(f"{tasks[task]}: does not compile: {error}")

    rows.sort(key=lambda row: (row.kind, row.kernel, row.arch, row.variant))
    faults += verify(
        rows,
        [] if options.only else aot_triton.kernel_names(),
        aot_cuda.global_names() if cuda else [],
    )
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "resources.md").write_text(markdown(rows))
    record = {"rows": [asdict(row) for row in rows], "faults": faults, "cuda_skipped": skipped}
    (options.out / "resources.json").write_text(json.dumps(record, indent=1) + "\n")
    print(summary(rows))
    if skipped:
        print(f"CUDA sources skipped: {skipped}")
    for fault in faults:
        print(f"FAULT {fault}")
    seconds = time.monotonic() - started
    print(f"{len(rows)} rows in {seconds:.0f} s: table in {options.out / 'resources.md'}")
    return 1 if faults else 0
