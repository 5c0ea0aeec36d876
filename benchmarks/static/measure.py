"""The whole static report: ops and architectures side by side, each in a process of its own."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from .cuda_build import Built, build, cuda_ops
from .host_time import is_quiet
from .kernels import MODELLED
from .launches import FIRST, SAMPLE, WHOLE

KIND = "static estimate, not measured"
OTHERS = (80, 100)  # architectures without a model: resources and accesses alone
ROOT = Path(__file__).resolve().parents[2]
# The library that attnops loads is the one of its first argument, with the stand-in runtime.
ON_STAND_IN = """
import importlib, sys
import torch
load, library = torch.ops.load_library, sys.argv[1]
torch.ops.load_library = lambda path: load(
    library if str(path).endswith("libattnops_cuda.so") else path
)
module = importlib.import_module(f"attnops.benchmarks.static.{sys.argv[2]}")
sys.exit(module.main(sys.argv[3:]))
"""
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
    """Rows of the Triton kernels of some ops.

    Raises:
        subprocess.CalledProcessError: with the end of what the process printed.
    """
    command = [sys.executable, "-m", "attnops.benchmarks.static.launches", str(folder), *ops]
    command += ["--arch", str(arch), "--part", part]
    kept = part != SAMPLE and (ROOT / "Makefile").is_file()
    cache = cache_folder(ops[0]) if kept else folder / "cache"
    return _rows_by(command, folder, {"TRITON_CACHE_DIR": str(cache)})


def record_first_calls(ops: Sequence[str], folder: Path) -> list[dict[str, Any]]:
    """Rows of `first_call`, every op compiled into an empty cache.

    Raises:
        subprocess.CalledProcessError: with the end of what the process printed.
    """
    rows = []
    for op in ops:
        place = folder / op
        command = [sys.executable, "-m", "attnops.benchmarks.static.first_call", str(place), op]
        rows += _rows_by(command, place, {"TRITON_CACHE_DIR": str(place / "cache")})
        print(f"{op}: {len(rows)} variants so far", file=sys.stderr, flush=True)
    return rows


def record_on_stand_in(
    module: str, ops: Sequence[str], folder: Path, built: Built
) -> list[dict[str, Any]]:
    """Rows of `cuda_launches` or `host_time`, with the stand-in runtime.

    Raises:
        subprocess.CalledProcessError: with the end of what the process printed.
    """
    command = [sys.executable, "-c", ON_STAND_IN, str(built.library), module, str(folder), *ops]
    # Triton links its launchers with the driver, whose name the runtime has.
    settings = {"TRITON_LIBCUDA_PATH": str(built.runtime.parent)}
    settings |= {"LD_PRELOAD": str(built.runtime)}
    return _rows_by(command, folder, settings, "\n".join(map(str, built.cubins)))


def _rows_by(
    command: list[str], folder: Path, settings: dict[str, str], text: str = ""
) -> list[dict[str, Any]]:
    environment = os.environ | settings
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, input=text)
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, stderr=done.stderr[-6000:])
    return json.loads((folder / "rows.json").read_text())


def _built(ops: Sequence[str], jobs: int) -> Built | str:
    """The CUDA kernels of some ops for `record_cuda`, or why there are none."""
    chosen = [op for op in ops if op in cuda_ops()]
    if not chosen:
        return "none of the ops has CUDA sources"
    print(f"compiling the CUDA kernels of {', '.join(chosen)}", file=sys.stderr, flush=True)
    try:
        return build(ROOT / "build" / "static" / "cuda", chosen, jobs)
    except subprocess.CalledProcessError as error:
        return f"they do not compile:\n{error.stderr[-3000:]}"


def measure(
    ops: Sequence[str], folder: Path, jobs: int, whole: bool
) -> tuple[dict[str, Any], list[str]]:
    """The document for some ops, and what did not compile.

    Args:
        whole: with the CUDA kernels, and with the architectures that have no model.
    """
    import triton

    others = OTHERS if whole else ()
    started = time.monotonic()
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    failures = []
    with ThreadPoolExecutor(jobs) as pool:
        tasks = {}
        for arch, part in [(MODELLED, WHOLE), *((arch, FIRST) for arch in others)]:
            for op in sorted(ops, key=lambda op: op not in LONG):
                task = pool.submit(record, [op], folder / f"{op}-{arch}", arch, part)
                tasks[task] = op, f"sm_{arch}"
        built = _built(ops, jobs) if whole else ""
        if isinstance(built, Built):
            for op in [op for op in ops if op in cuda_ops()]:
                place = folder / f"{op}-cuda"
                tasks[pool.submit(record_on_stand_in, "cuda_launches", [op], place, built)] = (
                    op,
                    "cuda",
                )
        elif built:
            print(f"no CUDA kernels: {built}", file=sys.stderr, flush=True)
            failures += [built] if "do not compile" in built else []
        for number, task in enumerate(as_completed(tasks), 1):
            op, kind = tasks[task]
            try:
                rows[op, kind] = task.result()
                what = f"{len(rows[op, kind])} rows"
            except subprocess.CalledProcessError as error:
                failures.append(f"{op} {kind}:\n{error.stderr}")
                what = "failed"
            seconds = time.monotonic() - started
            progress = f"{number}/{len(tasks)} {op} {kind}: {what}, {seconds:.0f} s"
            print(progress, file=sys.stderr, flush=True)

    def of(*kinds: str) -> list[dict[str, Any]]:
        return [row for op in ops for kind in kinds for row in rows.get((op, kind), [])]

    document = {"kind": KIND, "arch": f"sm_{MODELLED}", "triton": triton.__version__}
    document["rows"] = of(f"sm_{MODELLED}", "cuda")
    document["others"] = {f"sm_{arch}": of(f"sm_{arch}") for arch in others}
    if isinstance(built, Built):
        document["host"] = _host_times(ops, folder, built, failures)
    return document, failures


def _host_times(
    ops: Sequence[str], folder: Path, built: Built, failures: list[str]
) -> list[dict[str, Any]]:
    """CPU times of calls; none where the machine has other things to do."""
    if not is_quiet():
        print("no CPU times of calls: the machine is busy", file=sys.stderr, flush=True)
        return []
    try:
        return record_on_stand_in("host_time", ops, folder / "host", built)
    except subprocess.CalledProcessError as error:
        failures.append(f"CPU times of calls:\n{error.stderr}")
        return []
