"""Tests and benchmarks on the CUDA device, in under five minutes, the most important first.

    python -m attnops.benchmarks gpu [--out DIR] [--budget SECONDS] [--dry WHAT]

First every op on every backend, dtype and layout is held against float64 on a small input; what
fails there is not timed. Then follow the ops' tests, the tables, and the rest as time allows.
Workers measure (`supervise`); every row is in the result file as soon as it exists, and beside it
stands the static estimate (`calibration`). Needs torch, triton, numpy and pytest, and no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attnops.env import environment

from ..apnb.run import say
from ..report.document_markdown import as_markdown
from ..report.records import RESULTS, Document, write_whole
from . import calibration, plan
from .device_tests import Outcomes, refusals, run_tests, suite_files, together
from .dry import dry_document
from .supervise import Outcome, Supervisor
from .worker import main as work

BUDGET = 290.0
CLOSING = 8.0  # seconds before the end in which nothing is measured any more
WRITTEN_EVERY = 5.0  # seconds between two versions of the Markdown
ROOT = Path(__file__).resolve().parents[2]
GPU_BACKENDS = ("triton", "cuda")
Refused = list[dict[str, str]]


def age_of_this_process() -> float:
    """Seconds since it was started; 0 where the system does not tell."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        up = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, up - int(fields[19]) / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def gpu_backends(dry: bool) -> dict[str, list[str]]:
    """op -> the GPU backends that can run it here."""
    if dry:
        from ..static.cuda_build import cuda_ops

        return {op: ["triton"] + ["cuda"] * (op in cuda_ops()) for op in plan.OPS}
    states = environment()["backends"]
    return {op: [b for b in GPU_BACKENDS if states[op][b]["available"]] for op in plan.OPS}


@dataclass
class Run:
    """One run: what it knows, and its files.

    Attributes:
        end: when everything has to be over, by `time.monotonic`.
    """

    document: Document
    stem: Path
    folder: Path
    budget: float
    end: float
    dry: dict[str, Any] | None = None
    refused: Refused = field(default_factory=list)
    tests: dict[str, Outcomes] = field(default_factory=dict)
    _written: float = 0.0
    _part: str = ""

    def __post_init__(self) -> None:
        device = self.document.environment["cuda"]["devices"][0]
        self.device = device["name"]
        self.estimates = calibration.estimates(device["capability"])
        self.result = self.stem.with_suffix(".json")
        self.failed: dict[str, str] = self.document.parts.setdefault("failed parts", {})
        self.document.save(self.result)

    def left(self) -> float:
        return self.end - time.monotonic()

    def checks(self, available: plan.Available) -> None:
        """Every op on every backend in a worker of its own, all at once."""
        self._say("checks")
        pairs = [(op, backend) for op in plan.OPS for backend in available[op]]
        end = min(self.end, time.monotonic() + plan.CHECKS * self.budget)

        def one(pair: tuple[str, str]) -> tuple[Outcome, Document]:
            name = "-".join(pair)
            result = self.folder / f"{name}.json"
            Document(self.document.environment).save(result)
            supervisor = Supervisor(result, self.folder / name, end, dry=self.dry)
            return supervisor.run(plan.checks(*pair)), Document.load(result)

        with ThreadPoolExecutor(min(len(pairs), len(os.sched_getaffinity(0)), 16)) as pool:
            whole = Outcome()
            for outcome, found in pool.map(one, pairs):
                self.document.absorb(found)
                self.document.save(self.result)
                whole.absorb(outcome)
        for task in (task for pair in pairs for task in plan.checks(*pair)):
            why = whole.failed.get(task.name)
            known = any(task.is_refused_by(r) for r in whole.refused)
            if why and task.kind == "check" and not known:
                keys = ("op", "backend", "dtype", "layout")
                refusal = {key: task.details[key] for key in keys}
                whole.refused.append(refusal | {"why": f"{task.name}: its check failed: {why}"})
        self._add(whole)
        self.write()

    def run_tests(self, files: Sequence[Path], seconds: float) -> None:
        seconds = min(seconds, self.left())
        if self.dry is not None or seconds < 5:
            return
        self._say(f"{len(files)} files of tests")
        start = time.monotonic()
        self.tests |= run_tests(ROOT, files, seconds)
        before = self.document.parts.get("tests", {}).get("seconds", 0.0)
        whole = together(self.tests, before + time.monotonic() - start)
        self.document.parts["tests"] = dataclasses.asdict(whole)
        self.write()

    def measure(self, tasks: Sequence[plan.Task]) -> None:
        self.document.save(self.result)
        supervisor = Supervisor(
            self.result,
            self.folder / f"measured-{len(tasks)}",
            self.end,
            plan.shares(tasks, self.budget, self.left()),
            self.refused,
            refusals(together(self.tests, 0.0)),
            self.dry,
            self._tick,
        )
        outcome = supervisor.run(tasks)
        self.document = Document.load(self.result)
        self.failed = self.document.parts["failed parts"]
        self._add(outcome)
        self.write()

    def _add(self, outcome: Outcome) -> None:
        self.failed |= outcome.failed
        self.refused = [*self.refused, *(r for r in outcome.refused if r not in self.refused)]
        left_out = self.document.parts.setdefault("left out", {})
        for why, count in outcome.skipped.items():
            left_out[why] = f"{count} tasks skipped for it"
        for part, names in outcome.left_out.items():
            left_out[part] = f"no time for {len(names)}, the first: {names[0]}"

    def _say(self, part: str) -> None:
        say(f"{part} ({self.left():.0f} s left)")

    def _tick(self, part: str) -> None:
        if part and part != self._part:
            self._part = part
            self._say(part)
        if time.monotonic() - self._written > WRITTEN_EVERY:
            self._write_texts(Document.load(self.result))

    def write(self) -> None:
        """All files, of what is known by now."""
        calibration.put_estimates(self.document.rows, self.estimates)
        self.document.save(self.result)
        self._write_texts(self.document)

    def _write_texts(self, document: Document) -> None:
        calibration.put_estimates(document.rows, self.estimates)
        write_whole(self.stem.with_suffix(".md"), as_markdown(document))
        launch = document.parts.get("launch")
        found = calibration.document_of(
            document.rows, self.estimates, self.device, document.date, launch
        )
        path = self.stem.with_name(calibration.FILE)
        write_whole(path, json.dumps(found, indent=1) + "\n")
        write_whole(path.with_suffix(".md"), calibration.as_markdown(found))
        self._written = time.monotonic()

    def summary(self) -> str:
        found = json.loads(self.stem.with_name(calibration.FILE).read_text())
        whole, rows = found["all"], self.document.rows
        lines = [
            f"{sum(bool(row.p50) for row in rows)} rows measured, {len(self.failed)} failures",
            f"estimates: {whole['rows']} rows, Pearson of logs {whole['pearson_of_logs']}, "
            f"Spearman {whole['spearman']}, mean ratio {whole['mean_ratio']}, {whole['off']} off",
        ]
        left_out = self.document.parts.get("left out", {})
        for title, found in (("failed", self.failed), ("left out", left_out)):
            lines += [f"{title}: {name}: {text}"[:240] for name, text in [*found.items()][:40]]
        return "\n".join(lines)

    def status(self) -> int:
        """1 if a check or a test failed or broke down."""
        tests = self.document.parts.get("tests", {})
        broken = self.refused or tests.get("failures") or tests.get("crashed")
        return 1 if broken else 0


def run_all(run: Run, tests: bool) -> int:
    available = gpu_backends(run.dry is not None)
    first, others = suite_files(ROOT)
    run.checks(available)
    if tests:
        run.run_tests(first, plan.OP_TESTS * run.budget)
    core = plan.core(available)
    run.measure(core)
    if tests:
        unfinished = [file for file in first if _unfinished(run.tests.get(_name(file)))]
        run.run_tests([*unfinished, *others], plan.OTHER_TESTS * run.left())
    else:
        run.failed["tests"] = "left out on request; only the checks are behind what is timed"
    run.measure(plan.rest(available, core))
    print(run.summary())
    folder = run.stem.with_name("calibration")
    print(*(f"{stem}{end}" for stem in (run.stem, folder) for end in (".json", ".md")), sep="\n")
    return run.status()


def _name(file: Path) -> str:
    return str(file.relative_to(ROOT))


def _unfinished(outcomes: Outcomes | None) -> bool:
    return outcomes is None or bool(outcomes.unfinished)


def main(arguments: Sequence[str]) -> int:
    started = time.monotonic() - age_of_this_process()
    parser = argparse.ArgumentParser("attnops bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, metavar="DIR", help="default: benchmarks/results")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds altogether")
    parser.add_argument("--skip-tests", action="store_true", help="(the report says so)")
    parser.add_argument(
        "--dry",
        type=json.loads,
        metavar="JSON",
        help="without a GPU: made-up times, for trying the run itself (see gpu/dry.py)",
    )
    parser.add_argument("--work", help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.work:
        return work(chosen.work)
    dry = chosen.dry
    if dry is None and not torch.cuda.is_available():
        why = environment()["cuda"]["reason"]
        print(f"attnops bench gpu: {why}; it needs a machine with a CUDA GPU", file=sys.stderr)
        return 1
    document = Document() if dry is None else dry_document()
    name = document.environment["cuda"]["devices"][0]["name"]
    out = chosen.out or (RESULTS if dry is None else ROOT / "build" / "dry-run")
    stem = out / slug(name) / f"{datetime.datetime.now():%Y-%m-%d-%H%M}"
    with tempfile.TemporaryDirectory() as folder:
        end = started + chosen.budget - CLOSING
        run = Run(document, stem, Path(folder), chosen.budget, end, dry)
        return run_all(run, tests=not chosen.skip_tests)
