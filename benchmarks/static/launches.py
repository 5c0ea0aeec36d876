"""Which kernels real calls launch, compiled for a GPU that need not be there.

    python -m attnops.benchmarks.static.launches FOLDER OP... [--arch 90]

writes FOLDER/rows.json, and a cubin a variant beside it. A process of its own: a stand-in driver is
active in it.
"""

from __future__ import annotations

import argparse
import json
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ..ops.cases import OpCase
from .follow import SAMPLES, Launch, parameters_of
from .inputs import DTYPES, is_first, representative
from .kernels import Kernel, columns
from .rows import row_of
from .stand_in import on_triton, passes

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
    """Takes the place of `run`: notes every launch, and what its compiled kernel says of it."""

    def __init__(self, folder: Path, arch: int, samples: int = SAMPLES) -> None:
        self.folder, self.arch, self.samples = folder, arch, samples
        self.compiles = True
        self.launched: list[dict[str, Any]] = []
        self._kernels: dict[str, Kernel] = {}
        self._columns: dict[tuple, dict[str, Any]] = {}

    def __call__(self, kernel: Any, programs: int, *args: Any, launch: Any) -> None:
        name = kernel.__name__
        if not self.compiles:
            self.launched.append({"kernel": name, "programs": programs})
            return
        compiled = kernel.warmup(*args, grid=(programs,), **launch.constants, **launch.options())
        if compiled.hash not in self._kernels:
            cubin = self.folder / f"{name}-{compiled.hash[:10]}.cubin"
            cubin.write_bytes(compiled.asm["cubin"])
            (self._kernels[compiled.hash],) = Kernel.all_of(cubin).values()
        found = self._kernels[compiled.hash]
        values = dict(zip(kernel.arg_names, args, strict=False))
        types = compiled.src.signature
        parameters = [part for key, value in values.items() for part in as_bytes(value, types[key])]
        # Equal launches of a call, such as the steps of an iteration, are followed once.
        numbers = tuple(str(value) for value in values.values() if not torch.is_tensor(value))
        key = compiled.hash, programs, numbers
        if key not in self._columns:
            shape = Launch(
                (programs, 1, 1),
                (32 * compiled.metadata.num_warps, 1, 1),
                parameters_of(found.layout, parameters),
            )
            ranges = list(ranges_of(args))
            shared = compiled.metadata.shared
            self._columns[key] = columns(
                found, name, shape, shared, ranges, self.arch, self.samples
            )
        self.launched.append(self._columns[key])


def as_bytes(value: Any, kind: Any) -> Iterator[bytes]:
    """The parameters that an argument becomes: none for what was compiled in."""
    if isinstance(kind, (tuple, list)):
        for part, part_kind in zip(value, kind, strict=True):
            yield from as_bytes(part, part_kind)
    elif kind == "constexpr":
        return
    elif torch.is_tensor(value):
        yield struct.pack("<Q", value.data_ptr())
    elif kind in ("fp32", "fp64"):
        yield struct.pack("<f" if kind == "fp32" else "<d", value)
    else:
        yield struct.pack("<q", value)


def ranges_of(args: Any) -> Iterator[tuple[int, int]]:
    """Address and bytes of the memory of every tensor."""
    for value in args:
        if torch.is_tensor(value):
            storage = value.untyped_storage()
            yield storage.data_ptr(), storage.nbytes()
        elif isinstance(value, (tuple, list)):
            yield from ranges_of(value)


def record(folder: Path, ops: Sequence[str], arch: int, part: str) -> list[dict[str, Any]]:
    """A row an input and pass."""
    from triton.runtime import driver

    driver.set_active(Driver(arch))
    folder.mkdir(parents=True, exist_ok=True)
    launcher = Launcher(folder, arch, 1 if part == SAMPLE else SAMPLES)
    rows = []
    with on_triton(launcher, arch) as aten:
        for op in ops:
            for case in filter(LISTED[part], representative(op)):
                for name, call in passes(case):
                    launcher.compiles = part != SAMPLE or (is_first(case) and name == "forward")
                    launcher.launched, aten.names = [], []
                    with aten:
                        call()
                    rows.append(row_of(case, name, "triton", launcher.launched, aten.names))
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m attnops.benchmarks.static.launches")
    parser.add_argument("folder", type=Path)
    parser.add_argument("ops", nargs="+")
    parser.add_argument("--arch", type=int, default=90)
    parser.add_argument("--part", choices=LISTED, default=WHOLE)
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = record(chosen.folder, chosen.ops, chosen.arch, chosen.part)
    (chosen.folder / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
