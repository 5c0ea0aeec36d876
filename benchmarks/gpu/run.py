"""Tests and benchmarks on the CUDA device, in under nine minutes, into one JSON and one Markdown.

    python -m attnops.benchmarks gpu --out benchmarks/results

Every part runs in a process of its own and the files are written after each: a crash costs one
part. Ops whose tests failed are not timed. Needs torch, triton, numpy and pytest, and no network.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from attnops.env import environment

from .. import networks
from ..apnb import figure2
from ..apnb.operations import Block
from ..apnb.run import Options, run, say
from ..measure.timing import Budget
from ..ops import microbench
from ..ops.cases import FUNCTIONS, all_cases
from ..report.document_markdown import as_markdown
from ..report.records import RESULTS, Document, write_whole
from .device_tests import refusals, run_tests

TESTS_SHARE = 0.42  # of the whole time, at most
CUDA = torch.device("cuda")
Refused = dict[str, dict[str, str]]


def _table(dtype: torch.dtype, direction: str) -> Callable[[Document, Budget, Refused], None]:
    def part(document: Document, budget: Budget, refused: Refused) -> None:
        options = Options(
            device=CUDA,
            dtypes=(dtype,),
            batches=(1, 8),
            directions=(direction,),
            seconds=0.1,
            refused=_why_not_the_modules(refused),
        )
        run(document, options, budget)

    return part


def _ops(dtype: str) -> Callable[[Document, Budget, Refused], None]:
    def part(document: Document, budget: Budget, refused: Refused) -> None:
        for op in FUNCTIONS:
            why = dict(refused.get(op, {}))
            chosen = _auto(op)
            if chosen in why:
                why["auto"] = why[chosen]
            others = [name for name in _available(op) if name != chosen]
            cases = all_cases(op, (dtype,))
            microbench.run_cuda(document, cases, budget, backends=("auto", *others), refused=why)

    return part


def _figure2(document: Document, budget: Budget, refused: Refused) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        figure2.measure(document, Block(256, 128), CUDA, dtype)
        document.checkpoint()


def _networks(document: Document, budget: Budget, refused: Refused) -> None:
    # It needs no package beside torch; the others are there where timm is.
    why = _why_not_the_modules(refused)
    if why:
        raise RuntimeError(f"networks are not timed: {why}")
    networks.measure(document, ["segnext_t"], CUDA)
    document.checkpoint()


# In the order of importance: what comes late may find no time left. Limits in seconds.
PARTS: dict[str, tuple[Callable[[Document, Budget, Refused], None], float]] = {
    "table bfloat16": (_table(torch.bfloat16, "forward"), 110),
    "ops bfloat16": (_ops("bfloat16"), 90),
    "table float32": (_table(torch.float32, "forward"), 90),
    "figure 2": (_figure2, 30),
    "table bfloat16, backward": (_table(torch.bfloat16, "forward+backward"), 60),
    "networks": (_networks, 60),
    "ops float32": (_ops("float32"), 60),
}


def _available(op: str) -> list[str]:
    return [name for name in ("triton", "cuda") if environment()["backends"][op][name]["available"]]


def _auto(op: str) -> str:
    return environment()["auto"]["cuda"][op]


def _why_not_the_modules(refused: Refused) -> str:
    """Why the blocks must not be timed: their tests, or those of an op as "auto" runs it."""
    for op in FUNCTIONS:
        backend = _auto(op)
        for tested in ("nn", op):
            if backend in refused.get(tested, {}):
                return refused[tested][backend]
    return ""


def _run_part(
    name: str, seconds: float, refused: Refused, folder: Path
) -> tuple[Document | None, str]:
    """A part in its own process: what it has measured, and why it failed ("" if it did not)."""
    result = folder / f"{name}.json"
    command = [sys.executable, "-m", "attnops.benchmarks", "gpu", "--part", name]
    command += ["--budget", f"{seconds:.0f}", "--out", str(result)]
    command += ["--refused", json.dumps(refused)]
    why = ""
    with open(folder / "errors", "w+") as errors:
        try:
            done = subprocess.run(command, stdout=sys.stderr, stderr=errors, timeout=seconds + 20)
            if done.returncode:
                errors.seek(0)
                last = errors.read().strip().splitlines()[-1:] or [""]
                why = f"exit status {done.returncode}: {last[0][:300]}"
        except subprocess.TimeoutExpired:
            why = f"stopped after {seconds + 20:.0f} s"
    return (Document.load(result) if result.is_file() else None), why


def slug(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def _write(document: Document, stem: Path) -> None:
    document.save(stem.with_suffix(".json"))
    write_whole(stem.with_suffix(".md"), as_markdown(document))


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("attnops bench gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS, metavar="DIR")
    parser.add_argument("--budget", type=float, default=520, help="seconds altogether")
    parser.add_argument("--skip-tests", action="store_true", help="(the report says so)")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--refused", type=json.loads, default={}, help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        why = environment()["cuda"]["reason"]
        print(f"attnops bench gpu: {why}; it needs a machine with a CUDA GPU", file=sys.stderr)
        return 1
    budget = Budget(chosen.budget)
    if chosen.part:
        document = Document(path=chosen.out)
        PARTS[chosen.part][0](document, budget, chosen.refused)
        document.checkpoint()
        return 0
    return _run_all(chosen, budget)


def _run_all(chosen: argparse.Namespace, budget: Budget) -> int:
    document = Document()
    name = document.environment["cuda"]["devices"][0]["name"]
    now = datetime.datetime.now()
    stem = chosen.out / slug(name) / f"{now:%Y-%m-%d-%H%M}"
    failed: dict[str, Any] = document.parts.setdefault("failed parts", {})
    refused: Refused = {}
    if chosen.skip_tests:
        failed["tests"] = "left out on request; what is timed below is not covered by tests"
    else:
        say("tests")
        outcomes = run_tests(Path(__file__).resolve().parents[2], TESTS_SHARE * chosen.budget)
        document.parts["tests"] = dataclasses.asdict(outcomes)
        refused = refusals(outcomes)
        if not outcomes.counts:
            failed["tests"] = "no test ran"
    _write(document, stem)
    with tempfile.TemporaryDirectory() as folder:
        for part, (_, most) in PARTS.items():
            seconds = min(most, budget.left() - 25)
            if seconds < 15:
                failed[part] = "left out: no time"
                continue
            say(part)
            found, why = _run_part(part, seconds, refused, Path(folder))
            if found is not None:
                document.absorb(found)
            if why:
                failed[part] = why
            _write(document, stem)
    _write(document, stem)
    print(f"{stem}.json\n{stem}.md")
    tests = document.parts.get("tests", {})
    return 1 if tests.get("failures") or tests.get("crashed") else 0
