"""Running the test suite on the CUDA device and reading what came of it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from ..ops.definitions import DEFINITIONS
from .plan import OPS

OUTCOME = re.compile(r"^(?P<id>\S+::.+?) (?P<outcome>PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)\b")
STARTED = re.compile(r"^(?P<id>tests/\S+::.+?)\s*$")
COLLECTION_ERROR = re.compile(r"^ERROR (?P<id>\S+\.py)(?: - (?P<why>.*))?$")
DEVICE = ("--device", "cuda")
# The other tests run on CPUs alone, whatever --device says: `make test` is for them.
FOLDERS = ("ops", "nn", "models", "backends")
USES_THE_DEVICE = re.compile(
    r"def \w+\([^)]*\b(device|backend|pytestconfig)\b|cuda\.is_available", re.DOTALL
)
CAPTURES = re.compile(r"CUDAGraph|cuda\.graph\b")
BACKENDS = ("reference", "cpu", "triton", "cuda")


@dataclass
class Outcomes:
    """Counts by outcome, names of what failed, and what did not come to an end."""

    counts: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    crashed: list[str] = field(default_factory=list)
    unfinished: list[str] = field(default_factory=list)  # files that ran out of time
    seconds: float = 0.0

    def add(self, name: str, outcome: str) -> None:
        self.counts[outcome] = self.counts.get(outcome, 0) + 1
        if outcome in ("failed", "error"):
            self.failures.append(name)

    def absorb(self, other: Outcomes) -> None:
        for outcome, count in other.counts.items():
            self.counts[outcome] = self.counts.get(outcome, 0) + count
        self.failures += other.failures
        self.crashed += other.crashed
        self.unfinished += other.unfinished


def parse(lines: Iterable[str]) -> tuple[Outcomes, str | None]:
    """Outcomes from pytest's verbose output, and the test that had begun but not ended."""
    outcomes, running = Outcomes(), None
    for line in lines:
        line = line.rstrip("\n")
        if match := OUTCOME.match(line):
            outcomes.add(match["id"], match["outcome"].lower())
            running = None
        elif match := COLLECTION_ERROR.match(line):
            outcomes.add(match["id"], "error")
        elif match := STARTED.match(line):
            running = match["id"]
    return outcomes, running


def _run_file(root: Path, file: Path, deadline: float, arguments: Sequence[str]) -> Outcomes:
    """One file in a process of its own: a crash of the device's context ends there."""
    name = str(file.relative_to(root))
    left = deadline - time.monotonic()
    if left < 5:
        return Outcomes(unfinished=[name])
    command = [sys.executable, "-m", "pytest", name, "-m", "not slow", *arguments, "-v"]
    command += ["--tb=short", "-o", "addopts=", "-p", "no:cacheprovider", "--color=no"]
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["PYTHONUNBUFFERED"] = "1"
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(
            command, cwd=root, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            status = process.wait(timeout=left)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            status = None
        output.seek(0)
        outcomes, running = parse(output)
    if status is None:
        outcomes.unfinished.append(running or name)
    elif status < 0 or status not in (0, 1, 5):  # 5: nothing to run
        outcomes.crashed.append(f"{running or name} (exit status {status})")
    return outcomes


def suite_files(root: Path) -> tuple[list[Path], list[Path]]:
    """Files of tests that run on the device: about CUDA graphs and ops first, and the others."""
    folders = (root / "tests" / name for name in FOLDERS)
    files = sorted(file for folder in folders for file in folder.rglob("test_*.py"))
    texts = {file: file.read_text(encoding="utf-8") for file in files}

    def place(file: Path) -> int:
        if CAPTURES.search(texts[file]):
            return 0
        return next((i for i, op in enumerate(OPS, 1) if op in file.name), len(OPS) + 1)

    files = sorted((file for file in files if USES_THE_DEVICE.search(texts[file])), key=place)
    first = [file for file in files if place(file) <= len(OPS)]
    return first, files[len(first) :]


def run_tests(
    root: Path,
    files: Sequence[Path],
    seconds: float,
    arguments: Sequence[str] = DEVICE,
) -> dict[str, Outcomes]:
    """`pytest FILE -m "not slow" --device cuda` for each file, some at a time."""
    deadline = time.monotonic() + seconds
    jobs = max(2, 3 * len(os.sched_getaffinity(0)) // 4)
    with ThreadPoolExecutor(jobs) as pool:
        found = pool.map(lambda file: _run_file(root, file, deadline, arguments), files)
        return {str(file.relative_to(root)): one for file, one in zip(files, found, strict=True)}


def together(found: Mapping[str, Outcomes], seconds: float) -> Outcomes:
    """The outcomes of all files."""
    whole = Outcomes(seconds=seconds)
    for outcomes in found.values():
        whole.absorb(outcomes)
    return whole


def refusals(outcomes: Outcomes) -> dict[str, dict[str, str]]:
    """op -> backend -> which of its tests failed or crashed, for the notes of its rows.

    A failure that names a backend in its parameters counts for that backend, any other for all of
    them. "nn" stands for the modules, whose tests belong to no op.
    """
    refused: dict[str, dict[str, str]] = {}
    for name in (*outcomes.failures, *outcomes.crashed):
        targets = [op for op in DEFINITIONS if op in name] or (["nn"] if "test_nn" in name else [])
        parameters = re.search(r"\[(.*)\]", name)
        words = re.split(r"[-_,]", parameters[1]) if parameters else []
        backends = [backend for backend in BACKENDS if backend in words] or list(BACKENDS)
        for target in targets:
            for backend in backends:
                refused.setdefault(target, {}).setdefault(backend, f"its tests failed: {name}")
    return refused
