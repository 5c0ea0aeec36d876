"""A run without a GPU: every task has a made-up time, and some break as they are told to.

    attnops bench gpu --dry '{"seconds": 0.05, "lose": ["nmf"], "hang": [], "wrong": []}'

The order, the limits of time, broken tasks, files and the calibration are the real ones.
"""

from __future__ import annotations

import hashlib
import os
import time
from typing import Any

from ..measure.agreement import Disagreement
from ..measure.timing import Budget, Timing
from ..ops.cases import EAGER, OURS, case_of, facts
from ..report.records import Document, put_better_ratios, put_ratios
from ..static.rows import floor_us
from .plan import Task

DEVICE = {"name": "no GPU (dry run)", "capability": "9.0", "memory_gib": 0.0, "processors": 132}
SLOWER = {OURS: 2.0, EAGER: 20.0}  # times the floor; others: 10


def dry_document() -> Document:
    """A document of a GPU that is not there."""
    document = Document()
    document.environment["cuda"] |= {"driver": "none", "devices": [DEVICE]}
    return document


class DryMeasures:
    """Stands in for `measures.Measures`.

    Args:
        told: "seconds" a task takes, and words in names of tasks that "lose" the device, "exit",
            "hang" or give "wrong" results.
    """

    def __init__(self, told: dict[str, Any]) -> None:
        self.told = told
        self.lost = False

    def _is(self, what: str, task: Task) -> bool:
        return any(word in task.name for word in self.told.get(what, ()))

    def alive(self) -> bool:
        return not self.lost

    def run(self, document: Document, task: Task, budget: Budget) -> None:
        time.sleep(self.told.get("seconds", 0.0))
        if self._is("lose", task):
            self.lost = True
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._is("exit", task):
            os._exit(11)
        if self._is("hang", task):
            time.sleep(3600)
        if self._is("wrong", task):
            raise Disagreement("output: error 1.0e+00, allowed 1.0e-06")
        if task.kind == "op":
            self._row(document, task)
        elif task.kind == "check":
            document.parts.setdefault("checks", {})[task.name] = {
                "output": _between_0_and_1(task.name)
            }
        else:
            document.parts.setdefault("dry", []).append(task.name)

    def _row(self, document: Document, task: Task) -> None:
        case, contender = case_of(task.details["op"], task.details), task.details["contender"]
        backend = task.details["backend"]
        name = contender if backend in ("", "triton") else f"{contender} ({backend})"
        row = document.new_row(case.op, name, "cuda", **facts(case))
        row.backend = backend
        passes = ("forward", "backward") if case.has_backward else ("forward",)
        floor = sum(floor_us(case, one) for one in passes)
        ms = 1e-3 * floor * SLOWER.get(contender, 10.0) * (1 + _between_0_and_1(task.name) / 4)
        row.put_timing(Timing(0.9 * ms, ms + 0.002, 1.2 * ms, 50))
        row.put_timing(Timing(0.9 * ms, ms, 1.1 * ms, 50), prefix="graph_")
        row.host_p50 = 0.02
        rows = [other for other in document.rows if other.table == case.op]
        put_ratios(rows, (EAGER,))
        put_better_ratios(rows, (EAGER,))


def _between_0_and_1(text: str) -> float:
    return int(hashlib.sha256(text.encode()).hexdigest()[:8], 16) / 16**8
