"""Compiles and runs emulated CUDA kernels (cuda_emulation.h) under g++'s sanitizers."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
CACHE = ROOT / "build" / "emulation"
SANITIZERS = {
    "address": ("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
    "thread": ("-fsanitize=thread",),
}
FLAGS = ("-std=c++17", "-O1", "-g1", "-DATTNOPS_EMULATION")
TORCH_INCLUDE = Path(torch.__file__).parent / "include"


@functools.cache
def unavailable(sanitizer: str) -> str | None:
    """Why programs cannot be built and run under the sanitizer here; None if they can."""
    if shutil.which("g++") is None:
        return "there is no g++"
    with tempfile.TemporaryDirectory() as folder:
        source, program = Path(folder, "probe.cpp"), Path(folder, "probe")
        source.write_text("int main() { return 0; }\n")
        for command in (["g++", *SANITIZERS[sanitizer], source, "-o", program], [program]):
            try:
                subprocess.run(command, check=True, capture_output=True, timeout=60)
            except (OSError, subprocess.SubprocessError) as error:
                return f"g++'s {sanitizer} sanitizer does not work here: {error}"
    return None


def build(
    driver: str, sanitizer: str, csrc: Path = ROOT / "csrc", defines: Sequence[str] = ()
) -> Path:
    """The program of tests/support/emulation/`driver` against the kernels of `csrc`.

    Programs are kept in build/emulation under a hash of all that goes into them, so that a session
    compiles only what changed; processes that want the same one wait for the first. Skips the test
    where none can be built.
    """
    reason = unavailable(sanitizer)
    if reason:
        pytest.skip(reason)
    flags = [*FLAGS, *SANITIZERS[sanitizer], *(f"-D{name}" for name in defines)]
    digest = hashlib.sha256()
    for text in (*flags, torch.__version__, _compiler_version()):
        digest.update(text.encode() + b"\0")
    for folder in (csrc / "common", csrc / "cuda", HERE):
        for path in sorted(folder.rglob("*.[ch]*")):
            digest.update(str(path.relative_to(folder)).encode() + b"\0" + path.read_bytes())
    program = CACHE / f"{Path(driver).stem}-{sanitizer}-{digest.hexdigest()[:16]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with open(CACHE / f"{program.name}.lock", "w") as lock:
        with contextlib.suppress(OSError):  # a network file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            unfinished = program.with_suffix(f".{os.getpid()}.part")
            includes = [f"-I{folder}" for folder in (csrc, HERE, HERE / "runtime", TORCH_INCLUDE)]
            command = ["g++", *flags, *includes, str(HERE / driver), "-o", str(unfinished)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stderr}"
            unfinished.rename(program)
    return program


def run(
    program: Path, *arguments: str | Path, order: str = "forward", **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs an emulated program; `order` is that of the threads between barriers."""
    return subprocess.run(
        [program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={
            **os.environ,
            "ATTNOPS_EMULATION_ORDER": order,
            "TSAN_OPTIONS": "atexit_sleep_ms=0",
            "ASAN_OPTIONS": "detect_leaks=0",  # needs ptrace, which containers may forbid
            **environment,
        },
    )


@functools.cache
def _compiler_version() -> str:
    return subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
