"""Which kernels real calls launch, compiled for a GPU that need not be there.

    python -m attnops.benchmarks.static.launches FOLDER OP... [--arch 90]

writes FOLDER/launches.json, one cubin a variant, and FOLDER/rows.json, what these say. A process of
its own: a stand-in driver is active in it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..ops.cases import OpCase, facts
from .inputs import DTYPES, is_first, representative
from .rows import rows_of
from .stand_in import on_triton, passes
from .trips import Undetermined, count_trips

# Parts of the report: every input compiled; the first input of an op alone; and for the gate of the
# fast tests the launches of all inputs in bfloat16, the forward of the first one compiled.
WHOLE, FIRST, SAMPLE = "whole", "first", "sample"
LISTED: dict[str, Callable[[OpCase], bool]] = {
    WHOLE: lambda case: True,
    FIRST: is_first,
    SAMPLE: lambda case: case.dtype == DTYPES[0],
}


class Driver:
    """What Triton asks of a driver before it compiles."""

    def __init__(self, arch: int) -> None:
        from triton.backends.compiler import GPUTarget

        self._target = GPUTarget("cuda", arch, 32)

    def get_current_target(self) -> Any:
        return self._target

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


class Launcher:
    """Takes the place of `run`: notes every launch, and compiles its kernel if it is told to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.compiles = True
        self.variants: dict[str, dict[str, Any]] = {}
        self.launched: list[dict[str, Any]] = []

    def __call__(self, kernel: Any, programs: int, *args: Any, launch: Any) -> None:
        noted = {"kernel": kernel.__name__, "programs": programs}
        if self.compiles:
            noted["variant"] = self._compiled(kernel, programs, args, launch)
            noted |= self._trips(kernel, programs, args, launch)
        self.launched.append(noted)

    def _compiled(self, kernel: Any, programs: int, args: Any, launch: Any) -> str:
        """The name of the variant that the launch needs; its cubin lies in the folder."""
        started = time.perf_counter()
        compiled = kernel.warmup(*args, grid=(programs,), **launch.constants, **launch.options())
        seconds = time.perf_counter() - started
        tag = f"{kernel.__name__}-{compiled.hash[:10]}"
        if tag not in self.variants:
            (self.folder / f"{tag}.cubin").write_bytes(compiled.asm["cubin"])
            self.variants[tag] = {
                "kernel": kernel.__name__,
                "constants": {name: str(value) for name, value in launch.constants.items()},
                "warps": compiled.metadata.num_warps,
                "shared": compiled.metadata.shared,
                "compile_s": round(seconds, 2),
            }
        return tag

    @staticmethod
    def _trips(kernel: Any, programs: int, args: Any, launch: Any) -> dict[str, Any]:
        try:
            loops = count_trips(kernel, programs, args, launch.constants)
        except Undetermined as error:
            return {"loops": None, "why": str(error)}
        return {"loops": [asdict(loop) for loop in loops]}


def record(folder: Path, ops: Sequence[str], arch: int, part: str) -> dict[str, Any]:
    """Inputs with their launches, and the variants that these need."""
    from triton.runtime import driver

    driver.set_active(Driver(arch))
    folder.mkdir(parents=True, exist_ok=True)
    launcher = Launcher(folder)
    rows = []
    with on_triton(launcher) as aten:
        for op in ops:
            for case in filter(LISTED[part], representative(op)):
                for name, call in passes(case):
                    launcher.compiles = part != SAMPLE or (is_first(case) and name == "forward")
                    launcher.launched, aten.names = [], []
                    with aten:
                        call()
                    found = {"launches": launcher.launched, "aten": aten.names}
                    rows.append({"op": op, **facts(case), "pass": name, **found})
    return {"arch": arch, "variants": launcher.variants, "rows": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attnops.benchmarks.static.launches")
    parser.add_argument("folder", type=Path)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--part", choices=LISTED, default=WHOLE)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    found = record(chosen.folder, chosen.ops, chosen.arch, chosen.part)
    (chosen.folder / "launches.json").write_text(json.dumps(found, indent=1) + "\n")
    (chosen.folder / "rows.json").write_text(json.dumps(rows_of(chosen.folder), indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
