"""Peak memory of a call above its inputs.

On a GPU the allocator tells. On the CPU a fresh process allocates and touches the inputs, warms
the libraries up, and the rise of its resident set's high-water mark (VmHWM) during the call is
read; the mark is lowered before the call where the system allows it (writing 5 to
/proc/self/clear_refs).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

MIB = 2**20


@dataclass(frozen=True)
class MemoryUse:
    """Peak bytes of a call above its inputs (weights count as inputs), and of its output."""

    above_inputs: int
    output: int
    method: str

    @property
    def above_inputs_and_output(self) -> int:
        return max(0, self.above_inputs - self.output)


@dataclass(frozen=True)
class Case:
    """Something to run: `call` returns the output; its inputs exist already.

    `warm_up` loads code and creates thread pools without touching as much memory as `call` does.
    """

    call: Callable[[], Any]
    warm_up: Callable[[], Any]


class MemoryUnknown(RuntimeError):
    """The peak cannot be measured here; the message says why."""


def free_bytes(device: torch.device) -> int | None:
    """Memory of a device that a process can still get; None: the system does not tell."""
    if device.type != "cuda":
        return _proc_bytes("/proc/meminfo", "MemAvailable")
    gc.collect()
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _proc_bytes(path: str, key: str) -> int | None:
    try:
        with open(path) as lines:
            for line in lines:
                if line.startswith(f"{key}:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def high_water_mark() -> int:
    """Largest resident set of this process so far, in bytes.

    Raises:
        MemoryUnknown: the system does not tell.
    """
    mark = _proc_bytes("/proc/self/status", "VmHWM")
    if mark is None:
        raise MemoryUnknown("this system does not report VmHWM")
    return mark


def _reset_peak() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as control:
            control.write("5")
    except OSError:
        return False
    return True


def _return_freed_memory() -> None:
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _output_bytes(output: Any) -> int:
    tensors = [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
    return sum(t.numel() * t.element_size() for t in tensors)


def measure_here(case: Case) -> MemoryUse:
    """Peak of `case` in this process, which should do nothing else (see `measure_cpu`).

    Raises:
        MemoryUnknown: the system keeps no high-water mark, or the mark of an earlier moment hides
            the
            call's.
    """
    case.warm_up()
    _return_freed_memory()
    lowered = _reset_peak()
    before = _proc_bytes("/proc/self/status", "VmRSS")
    mark = _proc_bytes("/proc/self/status", "VmHWM")
    if before is None or mark is None:
        raise MemoryUnknown("this system does not report VmRSS and VmHWM")
    output = case.call()
    peak = _proc_bytes("/proc/self/status", "VmHWM")
    if not lowered and peak == mark:
        raise MemoryUnknown("an earlier peak of the process hides the call's")
    method = "VmHWM, lowered before the call" if lowered else "VmHWM"
    return MemoryUse(max(0, peak - before), _output_bytes(output), method)


def _child(pipe: Any, threads: int, build: Callable[..., Case], arguments: dict[str, Any]) -> None:
    try:
        torch.set_num_threads(threads)
        pipe.send(measure_here(build(**arguments)))
    except Exception as error:
        pipe.send(MemoryUnknown(f"{type(error).__name__}: {error}"))


def measure_cpu(
    build: Callable[..., Case],
    timeout: float,
    *,
    compiles: bool = False,
    start: str = "forkserver",
    threads: int | None = None,
    **arguments: Any,
) -> MemoryUse:
    """Peak of the case that `build(**arguments)` makes, in a fresh process.

    Args:
        build: a function that can be imported (it is sent by name).
        timeout: seconds after which the process is ended.
        compiles: whether this or a later case needs torch.compile; the first call counts.
        start: "fork" from a process that has no threads and has imported what is needed.
        threads: of PyTorch; None: as many as here.

    Raises:
        MemoryUnknown: not measurable here, the case failed, or it took too long.
    """
    if not sys.platform.startswith("linux"):
        raise MemoryUnknown("peaks of a process are read on Linux only")
    context = multiprocessing.get_context(start)
    if start == "forkserver":
        # torch is imported once only, by the process that the others are forks of.
        compiler = [f"{__package__}.compiler"] if compiles else []
        context.set_forkserver_preload([__name__, build.__module__, *compiler])
    receiver, sender = context.Pipe(duplex=False)
    given = (sender, threads or torch.get_num_threads(), build, arguments)
    process = context.Process(target=_child, args=given, daemon=False)
    process.start()
    sender.close()
    try:
        if not receiver.poll(timeout):
            raise MemoryUnknown(f"the process ran longer than {timeout:.0f} s")
        found = receiver.recv()
    except EOFError:
        process.join()
        raise MemoryUnknown(f"the process ended with status {process.exitcode}") from None
    finally:
        process.kill()
        process.join()
        receiver.close()
    if isinstance(found, MemoryUnknown):
        raise found
    return found


def measure_cuda(case: Case) -> MemoryUse:
    """Peak of `case` on the current GPU, from PyTorch's allocator."""
    case.warm_up()
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    output = case.call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    return MemoryUse(peak - before, _output_bytes(output), "torch.cuda.max_memory_allocated")
