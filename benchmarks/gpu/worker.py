"""One process that measures tasks in order, and notes what it is at: see `supervise`."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..apnb.run import say
from ..measure.timing import Budget
from ..report.records import Document, why
from .plan import Task

LOST = 3  # exit status: the device is lost to this process
LEAST = 1.0  # seconds under which no task is begun


class Measuring(Protocol):
    """What runs tasks; `measures.Measures` on a device."""

    def run(self, document: Document, task: Task, budget: Budget) -> None: ...

    def alive(self) -> bool: ...


@dataclass
class Order:
    """What a worker is told. Times are those of `time.monotonic`, one for all processes.

    Attributes:
        waiting: indices of the tasks to run.
        shares: part -> seconds that it may take from its first task on.
        begun: part -> when that was.
        refused: what must not be timed (see `Task.is_refused_by`).
        noted: op -> backend -> which of its tests failed.
    """

    tasks: list[Task]
    waiting: list[int]
    result: str
    journal: str
    end: float
    shares: dict[str, float]
    begun: dict[str, float] = field(default_factory=dict)
    refused: list[dict[str, str]] = field(default_factory=list)
    noted: dict[str, dict[str, str]] = field(default_factory=dict)
    dry: dict[str, Any] | None = None
    parent: int = 0  # the process that watches; without it nothing is begun

    def save(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Order:
        data = json.loads(path.read_text())
        return cls(**data | {"tasks": [Task(**task) for task in data["tasks"]]})

    def refusal(self, task: Task) -> str:
        """Why a task must not be run; ""."""
        return next((r["why"] for r in self.refused if task.is_refused_by(r)), "")


def work(order: Order, measuring: Measuring, clock: Callable[[], float] = time.monotonic) -> int:
    """Run what waits; the exit status. The result file is whole after every task."""
    document = Document.load(order.result)
    document.path = Path(order.result)
    with open(order.journal, "a") as journal:

        def note(index: int, state: str, text: str = "") -> None:
            line = {"task": index, "state": state, "why": text, "at": clock()}
            journal.write(json.dumps(line) + "\n")
            journal.flush()

        for index in order.waiting:
            task = order.tasks[index]
            if order.parent and os.getppid() != order.parent:
                return LOST
            if reason := order.refusal(task):
                note(index, "refused", reason)
                continue
            end = _end_of(order, task.part, clock())
            if end - clock() < LEAST:
                note(index, "left out")
                continue
            note(index, "started")
            say(f"  {task.part}: {task.name}")
            text = ""
            try:
                measuring.run(document, task, Budget(end - clock()))
            except Exception as error:
                text = why(error)
            document.checkpoint()
            if not measuring.alive():
                note(index, "lost", text or "the device is lost")
                return LOST
            note(index, "failed" if text else "done", text)
    return 0


def _end_of(order: Order, part: str, now: float) -> float:
    """When the time of a part is up, which begins with its first task."""
    begun = order.begun.setdefault(part, now)
    return min(order.end, begun + order.shares.get(part, float("inf")))


def main(path: str) -> int:
    order = Order.load(Path(path))
    if order.dry is not None:
        from .dry import DryMeasures

        return work(order, DryMeasures(order.dry))
    from .measures import Measures

    return work(order, Measures(order.refused, order.noted))


def states_of(journal: Path) -> tuple[dict[int, Mapping[str, Any]], list[Mapping[str, Any]]]:
    """Task -> the last line about it, and all lines; a line that is cut off is left out."""
    lines = []
    for text in journal.read_text().splitlines() if journal.is_file() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return {line["task"]: line for line in lines}, lines


def close(journal: Path, task: int) -> None:
    """Note that a task took its worker along, and has been seen to."""
    with open(journal, "a") as file:
        line = {"task": task, "state": "broken", "why": "", "at": time.monotonic()}
        file.write("\n" + json.dumps(line) + "\n")
