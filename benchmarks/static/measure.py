"""The whole static report: ops and architectures side by side, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .kernels import MODELLED
from .launches import FIRST, SAMPLE, WHOLE

KIND = "static estimate, not measured"
OTHERS = (80, 100)  # architectures without a model: resources and accesses alone
ROOT = Path(__file__).resolve().parents[2]
# Compiling and reading the code of these takes longest: they start first.
LONG = ("nmf", "strip_conv", "anchor_attention", "local_attention")


def cache_folder(op: str) -> Path:
    """Where Triton keeps the kernels of an op, as its sources are now.

    Kernels out of Triton's own cache may name lines of helpers that have moved since.
    """
    import triton

    kernels = ROOT / "kernels" if (ROOT / "kernels").is_dir() else ROOT / "attnops" / "kernels"
    digest = hashlib.sha256(triton.__version__.encode())
    for path in sorted([*kernels.glob("*.py"), *(kernels / op).glob("*.py")]):
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "static" / op
    name = digest.hexdigest()[:16]
    for other in folder.glob("*"):
        if other.name != name:
            shutil.rmtree(other, ignore_errors=True)
    return folder / name


def record(
    ops: Sequence[str], folder: Path, arch: int = MODELLED, part: str = WHOLE
) -> list[dict[str, Any]]:
    """Rows of some ops.

    Raises:
        subprocess.CalledProcessError: with the end of what the process printed.
    """
    command = [sys.executable, "-m", "attnops.benchmarks.static.launches", str(folder), *ops]
    command += ["--arch", str(arch), "--part", part]
    kept = part != SAMPLE and (ROOT / "Makefile").is_file()
    cache = cache_folder(ops[0]) if kept else folder / "cache"
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr[-3000:])
    return json.loads((folder / "rows.json").read_text())


def measure(
    ops: Iterable[str], folder: Path, jobs: int, others: Sequence[int] = OTHERS
) -> tuple[dict[str, Any], list[str]]:
    """The document for some ops, and what did not compile."""
    import triton

    ops = list(ops)
    started = time.monotonic()
    rows: dict[tuple[int, str], list[dict[str, Any]]] = {}
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        tasks = {}
        for arch, part in [(MODELLED, WHOLE), *((arch, FIRST) for arch in others)]:
            for op in sorted(ops, key=lambda op: op not in LONG):
                task = pool.submit(record, [op], folder / f"{op}-{arch}", arch, part)
                tasks[task] = arch, op
        for number, task in enumerate(as_completed(tasks), 1):
            arch, op = tasks[task]
            try:
                rows[arch, op] = task.result()
                what = f"{len(rows[arch, op])} rows"
            except subprocess.CalledProcessError as error:
                failures.append(f"{op} sm_{arch}:\n{error.stderr}")
                what = "failed"
            seconds = time.monotonic() - started
            print(
                f"{number}/{len(tasks)} {op} sm_{arch}: {what}, {seconds:.0f} s",
                file=sys.stderr,
                flush=True,
            )

    def of(arch: int) -> list[dict[str, Any]]:
        return [row for op in ops for row in rows.get((arch, op), [])]

    document = {"kind": KIND, "arch": f"sm_{MODELLED}", "triton": triton.__version__}
    document["rows"] = of(MODELLED)
    document["others"] = {f"sm_{arch}": of(arch) for arch in others}
    return document, failures
