"""CPU time of a call of every op, on a runtime with no GPU behind it.

Run by `measure` in a process whose CUDA runtime is the stand-in (`stand_in_runtime.c`):

    FOLDER OP...

writes FOLDER/rows.json. All that a call does on the CPU is real (checks, dispatch, autograd,
allocation, device guards, Triton's launchers) but for the driver, which takes another 2 to 3 us a
launch.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import attnops
from attnops._dispatch import BackendError

from ..ops.cases import OpCase
from ..ops.definitions import DEFINITIONS
from ..ops.definitions._definition import OURS
from .inputs import is_first, representative
from .launches import Driver
from .stand_in import Blank

WARM, MOST_S = 20, 3.0  # calls before, and seconds for the calls that count
BATCH = 41  # calls that have one median
QUIET = 0.15  # of the machine's processors may be busy


class _Utilities:
    """Of a driver that loads nothing."""

    def load_binary(self, *args: Any) -> tuple[int, int, int, int, int]:
        return 8, 8, 64, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": 232448, "multiprocessor_count": 132, "warpSize": 32}


class LaunchingDriver(Driver):
    """Compiles, and goes all the way to the launch."""

    def __init__(self) -> None:
        from triton.backends.nvidia.driver import CudaLauncher

        super().__init__(90)
        self.utils, self.launcher_cls = _Utilities(), CudaLauncher


def is_quiet(seconds: float = 2.0) -> bool:
    """Whether the machine has nothing else to do, so that times mean something."""

    def spent() -> tuple[int, int]:
        ticks = list(map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:9]))
        return sum(ticks), ticks[3] + ticks[4]

    before = spent()
    time.sleep(seconds)
    total, idle = (b - a for a, b in zip(before, spent(), strict=True))
    return total == 0 or 1 - idle / total < QUIET


def median_us(call: Callable[[], Any]) -> float:
    """Of a call, while the machine does nothing else: the least of the medians of batches."""
    for _ in range(WARM):
        call()
    medians: list[float] = []
    end = time.perf_counter() + MOST_S
    while not medians or time.perf_counter() < end:
        times = []
        for _ in range(BATCH):
            start = time.perf_counter()
            call()
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    return round(1e6 * min(medians), 1)


def _calls(case: OpCase) -> tuple[Callable[[], Tensor], Callable[[], None]]:
    """The forward, for a block without gradients, and with its backward."""
    definition = DEFINITIONS[case.op]
    draw = Blank(torch.device("cuda"), getattr(torch, case.dtype), case.layout)
    inputs = definition.inputs(draw, case.shape, **dict(case.options))
    count = definition.differentiable
    leaves = [x.detach().requires_grad_() for x in inputs[:count]]

    def forward() -> Tensor:
        return definition.functions[OURS](*inputs, **dict(case.options))

    gradient = torch.empty_like(forward())

    def both() -> None:
        out = definition.functions[OURS](*leaves, *inputs[count:], **dict(case.options))
        torch.autograd.grad(out, leaves, gradient, allow_unused=True)

    return forward, both


def main(arguments: Sequence[str]) -> int:
    from triton.runtime import driver

    folder, *ops = arguments
    torch.set_num_threads(1)
    # Of autograd's thread the time counts, not the way to another processor.
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    driver.set_active(LaunchingDriver())
    rows = []
    for op in ops:
        (case,) = [c for c in representative(op) if is_first(c) and c.layout == _layout(op)]
        for backend in ("triton", "cuda"):
            if not attnops.backends()[op][backend]:
                continue
            with attnops.use_backend(backend):
                try:
                    forward, both = _calls(case)
                except BackendError:
                    continue
                with torch.no_grad():
                    row = {"op": op, "backend": backend, "forward_us": median_us(forward)}
                if DEFINITIONS[op].differentiable:
                    row["both_us"] = median_us(both)
            rows.append(row)
    Path(folder).mkdir(parents=True, exist_ok=True)
    (Path(folder) / "rows.json").write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _layout(op: str) -> str:
    return DEFINITIONS[op].layouts[-1]
