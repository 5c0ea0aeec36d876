"""Which CUDA kernels real calls launch, on a runtime with no GPU behind it.

Run by `measure` in a process whose CUDA runtime is the stand-in (`stand_in_runtime.c`), so that
PyTorch sees a device and the public ops take their whole way to the kernels:

    FOLDER OP... < list of cubins

writes FOLDER/rows.json.
"""

from __future__ import annotations

import ctypes
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import attnops
from attnops._dispatch import BackendError

from .estimate import occupancy
from .follow import Launch, parameters_of
from .inputs import representative
from .kernels import Kernel, columns
from .rows import row_of
from .stand_in import passes

_LAUNCHED = ctypes.CFUNCTYPE(
    None,
    ctypes.c_char_p,
    ctypes.POINTER(ctypes.c_uint),
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
)
_RESIDENT = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t)


def short_name(mangled: str) -> str:
    """The name of a function: of _ZN7attnops4cuda9nmf_solveILi4EEEvPf, nmf_solve."""
    rest, name = mangled.removeprefix("_ZN").removeprefix("_Z"), mangled
    while found := re.match(r"\d+", rest):
        size = int(found[0])
        name = rest[found.end() : found.end() + size]
        rest = rest[found.end() + size :]
    return name


class Recorder:
    """Hears of every launch; `launched` and `aten` are of the present pass."""

    def __init__(self, cubins: Sequence[Path]) -> None:
        self.kernels = {name: k for cubin in cubins for name, k in Kernel.all_of(cubin).items()}
        self.launched: list[dict[str, Any]] = []
        self.aten: list[str] = []
        self._columns: dict[tuple, dict[str, Any]] = {}
        self._error: Exception | None = None
        self._callbacks = _LAUNCHED(self._on_launch), _RESIDENT(self._on_occupancy)
        library = ctypes.CDLL("libcuda.so.1")  # the stand-in has its name
        library.attnops_on_launch(self._callbacks[0])
        library.attnops_on_occupancy(self._callbacks[1])

    @contextmanager
    def one_pass(self) -> Iterator[None]:
        """What is launched within the block.

        Raises:
            Exception: whatever went wrong while a launch was looked at.
        """
        self.launched, self.aten = [], []
        yield
        if self._error is not None:
            raise self._error

    def _on_launch(self, name: bytes, extents: Any, shared: int, arguments: Any) -> None:
        try:
            kernel = self.kernels.get(name.decode())
            if kernel is None:
                self.aten.append(short_name(name.decode()))
            else:
                self._note(name.decode(), kernel, [extents[i] for i in range(6)], shared, arguments)
        except Exception as error:  # nothing may pass through the C code that called
            self._error = error

    def _note(
        self, name: str, kernel: Kernel, extents: list[int], shared: int, arguments: Any
    ) -> None:
        values = [
            ctypes.string_at(arguments[ordinal], kernel.layout.parameters[ordinal][1])
            for ordinal in sorted(kernel.layout.parameters)
        ]
        launch = Launch(
            tuple(extents[:3]), tuple(extents[3:]), parameters_of(kernel.layout, values)
        )
        ranges = [(s["address"], s["total_size"]) for s in torch.cuda.memory_snapshot()]
        key = name, *extents, shared, launch.parameters
        if key not in self._columns:
            whole = kernel.shared + shared
            self._columns[key] = columns(kernel, short_name(name), launch, whole, ranges)
        self.launched.append(self._columns[key])

    def _on_occupancy(self, name: bytes, threads: int, shared: int) -> int:
        kernel = self.kernels.get(name.decode())
        if kernel is None:
            return 1
        return occupancy(kernel.registers, -(-threads // 32), kernel.shared + shared)[0]


def record(recorder: Recorder, ops: Sequence[str]) -> list[dict[str, Any]]:
    """A row an input and pass; none where the kernels refuse the input."""
    rows = []
    with attnops.use_backend("cuda"):
        for op in ops:
            for case in representative(op):
                try:
                    for name, call in passes(case, "cuda"):
                        with recorder.one_pass():
                            call()
                        found = recorder.launched, recorder.aten
                        rows.append(row_of(case, name, "cuda", *found))
                except BackendError as error:
                    print(f"{case}: {error}", file=sys.stderr)
    return rows


def main(arguments: Sequence[str]) -> int:
    folder, *ops = arguments
    torch.set_num_threads(1)
    recorder = Recorder([Path(line) for line in sys.stdin.read().splitlines()])
    rows = record(recorder, ops)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0
