"""Times of calls: medians of many on the CPU; events, graph replay and launches on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy
import torch

Call = Callable[[], Any]


@dataclass(frozen=True)
class Timing:
    """Percentiles of repeated times, in milliseconds."""

    p20: float
    p50: float
    p80: float
    repeats: int

    @classmethod
    def of(cls, milliseconds: list[float]) -> Timing:
        p20, p50, p80 = map(float, numpy.percentile(milliseconds, (20, 50, 80)))
        return cls(p20, p50, p80, len(milliseconds))


class Budget:
    """Seconds that a run may take altogether; None: no limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        return float("inf") if self._end is None else self._end - time.monotonic()


def once(call: Call) -> float:
    """Milliseconds of one call, by the clock."""
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def time_cpu(
    calls: Mapping[str, Call], seconds: float, least: int = 2, most: int = 100
) -> dict[str, Timing]:
    """Time several calls in turn, so that a disturbance of the machine meets all of them alike.

    Every call is expected to have run before (its output has been checked).

    Args:
        calls: what to time, by name.
        seconds: time to spend on each call.
        least: repeats of a call that takes longer than that.
        most: repeats at most.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    warm = {name: once(call) for name, call in calls.items()}
    for name, duration in warm.items():
        if duration > 250 * seconds:  # a warm-up that costs so much is kept as a sample
            samples[name].append(duration)
    while True:
        waiting = [
            name
            for name, times in samples.items()
            if len(times) < least or (len(times) < most and sum(times) < 1e3 * seconds)
        ]
        if not waiting:
            return {name: Timing.of(times) for name, times in samples.items()}
        for name in waiting:
            samples[name].append(once(calls[name]))


def time_cuda(call: Call, milliseconds: float = 100, least: int = 10) -> Timing:
    """Time a call on the current GPU with events around it; L2 is flushed before every run."""
    from triton.testing import do_bench

    torch.cuda.synchronize()
    estimate = once(lambda: (call(), torch.cuda.synchronize()))
    times = do_bench(call, warmup=25, rep=max(milliseconds, least * estimate), return_mode="all")
    return Timing.of(times)


def time_host(call: Call, repeats: int = 40) -> Timing:
    """Time that a call keeps the CPU busy: by the clock, without waiting for the GPU.

    Every few calls the GPU catches up, so that the queue of launches is never full.
    """
    samples = []
    for index in range(repeats):
        if index % 8 == 0:
            torch.cuda.synchronize()
        samples.append(once(call))
    torch.cuda.synchronize()
    return Timing.of(samples)


def time_cuda_graph(call: Call, milliseconds: float = 100) -> Timing:
    """Time the replay of a CUDA graph of `call`: its kernels without their launches from Python.

    Raises:
        RuntimeError: the call cannot be captured.
    """
    graph = torch.cuda.CUDAGraph()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        kept = call()  # the graph's output memory must stay while it is replayed
    timing = time_cuda(graph.replay, milliseconds)
    del kept
    return timing
