"""Runs tasks in worker processes, and starts another one where a task took its worker along.

An illegal address, a hang or a crash ends the process that it happens in: the task is named, what
is left of its op on that backend is skipped, and a new worker goes on behind it. Rows stand in the
result file from the moment they exist.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .plan import Task
from .worker import Order, close, states_of

START = 6.0  # seconds that a worker needs before its first task; not begun with less
GRACE = 8.0  # seconds over the end after which a worker is stopped
POLL = 0.1
MOST_WORKERS = 40
FRUITLESS = 2  # workers in a row that end before they begin a task: something else is wrong
PEERS = "ATTNOPS_PEERS"  # names a folder with libraries to compare with
TIME_IS_UP = "time was up"


def environment() -> dict[str, str]:
    """Of workers: libraries to compare with come last, so that they shadow nothing."""
    found = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    paths = [found.get("PYTHONPATH", ""), found.get(PEERS, "")]
    return found | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}


@dataclass
class Outcome:
    """What came of tasks: by name why they failed, and the parts' tasks that time ran out for."""

    failed: dict[str, str] = field(default_factory=dict)
    left_out: dict[str, list[str]] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)  # why -> how many
    refused: list[dict[str, str]] = field(default_factory=list)
    done: int = 0

    def absorb(self, other: Outcome) -> None:
        self.failed |= other.failed
        for part, names in other.left_out.items():
            self.left_out.setdefault(part, []).extend(names)
        for why, count in other.skipped.items():
            self.skipped[why] = self.skipped.get(why, 0) + count
        self.refused += other.refused
        self.done += other.done


@dataclass
class Supervisor:
    """Runs tasks into `result`, a document that exists.

    Attributes:
        folder: for the journals and what workers print.
        end: when everything has to be over, by `time.monotonic`.
        tick: called several times a second with the part that is at work.
    """

    result: Path
    folder: Path
    end: float
    shares: Mapping[str, float] = field(default_factory=dict)
    refused: Sequence[dict[str, str]] = ()
    noted: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    dry: dict[str, Any] | None = None
    tick: Callable[[str], None] = lambda part: None
    command: Sequence[str] = (sys.executable, "-m", "attnops.benchmarks", "gpu", "--work")

    def run(self, tasks: Sequence[Task]) -> Outcome:
        self.folder.mkdir(parents=True, exist_ok=True)
        outcome = Outcome(refused=list(self.refused))
        journal = self.folder / "journal"
        order = Order(
            list(tasks),
            list(range(len(tasks))),
            str(self.result),
            str(journal),
            self.end,
            dict(self.shares),
            noted={op: dict(found) for op, found in self.noted.items()},
            dry=self.dry,
            parent=os.getpid(),
        )
        fruitless = 0
        for _ in range(MOST_WORKERS):
            left = self.end - time.monotonic()
            if not order.waiting or left < START or fruitless == FRUITLESS:
                break
            order.refused = outcome.refused
            waiting = len(order.waiting)
            ended = self._one_worker(order)
            states, lines = states_of(journal)
            for line in lines:
                order.begun.setdefault(order.tasks[line["task"]].part, line["at"])
            order.waiting = [i for i in order.waiting if i not in states]
            for index, line in states.items():
                if line["state"] in ("started", "lost"):
                    self._blame(outcome, order, order.tasks[index], line["why"] or ended)
                    close(journal, index)
            fruitless = fruitless + 1 if len(order.waiting) == waiting else 0
        if fruitless:
            outcome.failed["measuring"] = ended
        self._collect(outcome, order, journal)
        return outcome

    def _blame(self, outcome: Outcome, order: Order, task: Task, why: str) -> None:
        if why == TIME_IS_UP:
            outcome.left_out.setdefault(task.part, []).append(task.name)
            return
        outcome.failed[task.name] = why
        outcome.refused.append(task.who | {"why": f"{task.name}: {why}"})
        order.begun[task.part] += START  # another worker is not the part's fault

    def _collect(self, outcome: Outcome, order: Order, journal: Path) -> None:
        states, _ = states_of(journal)
        for index, task in enumerate(order.tasks):
            line = states.get(index, {"state": "left out", "why": ""})
            outcome.done += line["state"] == "done"
            if line["state"] == "left out":
                outcome.left_out.setdefault(task.part, []).append(task.name)
            elif line["state"] == "refused":
                outcome.skipped[line["why"]] = outcome.skipped.get(line["why"], 0) + 1
            elif line["state"] == "failed":
                outcome.failed[task.name] = line["why"]

    def _one_worker(self, order: Order) -> str:
        """Why a worker came to no good end; "" if it did."""
        path, printed = self.folder / "order.json", self.folder / "printed"
        order.save(path)
        with open(printed, "a+") as output:
            process = subprocess.Popen(
                [*self.command, str(path)],
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env=environment(),
            )
            try:
                why = self._watch(process, order, Path(order.journal))
            finally:
                _end(process)
            if why or process.returncode == 0:
                return why
            output.seek(0)
            last = (output.read().strip().splitlines() or [""])[-1]
            return f"exit status {process.returncode}; the last line printed: {last.strip()[:300]}"

    def _watch(self, process: subprocess.Popen, order: Order, journal: Path) -> str:
        while process.poll() is None:
            time.sleep(POLL)
            now = time.monotonic()
            _, lines = states_of(journal)
            part = order.tasks[lines[-1]["task"]].part if lines else ""
            self.tick(part)
            if lines and lines[-1]["state"] == "started":
                task = order.tasks[lines[-1]["task"]]
                if now - lines[-1]["at"] > task.limit:
                    return f"no end after {task.limit:.0f} s"
            if now > self.end + GRACE:
                return TIME_IS_UP
        return ""


def _end(process: subprocess.Popen) -> None:
    """The worker and what it started, such as compilers."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
