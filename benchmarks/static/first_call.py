"""How long the kernels of an op's first call compile, with nothing in Triton's cache.

    python -m attnops.benchmarks.static.first_call FOLDER OP... [--arch 90]

writes FOLDER/rows.json: a row a variant that calls on the first input of an op launch, in bfloat16
and every layout, forward and backward. Run it with an empty TRITON_CACHE_DIR. Later calls and
processes find the kernels in the cache; nothing is tuned at run time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..report.grid import Grid, markdown, number
from .inputs import is_first, representative
from .kernels import MODELLED
from .launches import Driver
from .stand_in import on_triton, passes


class Compiler:
    """Takes the place of `run`: compiles what is launched, and notes how long that took."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._known: set[str] = set()

    def __call__(self, kernel: Any, programs: int, *args: Any, launch: Any) -> None:
        start = _seconds()
        compiled = kernel.warmup(*args, grid=(programs,), **launch.constants, **launch.options())
        seconds = _seconds() - start
        if compiled.hash in self._known:
            return
        self._known.add(compiled.hash)
        constants = {name: str(value) for name, value in launch.constants.items()}
        row = {"kernel": kernel.__name__, "constants": constants, "warps": launch.warps}
        self.found.append(row | {"stages": launch.stages, "seconds": round(seconds, 2)})


def _seconds() -> float:
    """Time of this process and of those it has waited for (ptxas), whatever else is running."""
    return sum(os.times()[:4])


def record(ops: Sequence[str], arch: int) -> list[dict[str, Any]]:
    """A row a variant, in the order of the calls."""
    from triton.runtime import driver

    driver.set_active(Driver(arch))
    compiler, rows = Compiler(), []
    with on_triton(compiler, arch):
        for op in ops:
            for case in filter(is_first, representative(op)):
                for name, call in passes(case):
                    compiler.found = []
                    call()
                    facts = {"op": op, "dtype": case.dtype, "layout": case.layout, "pass": name}
                    rows += [facts | found for found in compiler.found]
    return rows


def totals(rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of first calls: variants and seconds of an op's pass in a layout."""
    grid = Grid("Compilation at the first call", ["op", "layout", "pass", "variants", "seconds"])
    calls: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        key = tuple(row[name] for name in ("op", "layout", "pass"))
        calls.setdefault(key, []).append(row["seconds"])
    grid.cells += [[*key, str(len(took)), number(sum(took))] for key, took in calls.items()]
    grid.notes.append(
        "CPU seconds of Triton and ptxas on one processor, whatever else it did, with an empty "
        "cache; what an earlier line of the op has compiled is not counted again"
    )
    return grid


def variants(rows: Sequence[dict[str, Any]]) -> Grid:
    """The table of variants."""
    header = ["op", "kernel", "layout", "pass", "constants", "warps", "stages", "seconds"]
    grid = Grid("Variants", header)
    for row in rows:
        constants = " ".join(f"{name}={value}" for name, value in row["constants"].items())
        names = [row[key] for key in ("op", "kernel", "layout", "pass")]
        sizes = [str(row["warps"]), str(row["stages"]), number(row["seconds"])]
        grid.cells.append([*names, constants, *sizes])
    return grid


def document(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The rows with what they hold for."""
    import triton

    return {"arch": f"sm_{MODELLED}", "triton": triton.__version__, "rows": list(rows)}


def as_markdown(found: dict[str, Any]) -> str:
    """The document as it is committed."""
    head = (
        f"# First calls on {found['arch']}\n\n"
        f"What Triton {found['triton']} compiles when an op is called for the first time, on the "
        "op's first input, in bfloat16: later calls, and later processes, find it in Triton's "
        "cache, and nothing is tuned at run time.\n"
    )
    rows = found["rows"]
    return "\n".join([head, *(markdown(grid) for grid in (totals(rows), variants(rows)))])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attnops.benchmarks.static.first_call")
    parser.add_argument("folder", type=Path)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--arch", type=int, default=90)
    chosen = parser.parse_args(arguments)
    rows = record(chosen.ops, chosen.arch)
    chosen.folder.mkdir(parents=True, exist_ok=True)
    (chosen.folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
