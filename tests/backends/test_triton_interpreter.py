"""The Triton kernels under Triton's interpreter, in a process of their own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

SUPPORT = Path(__file__).resolve().parents[1] / "support"


def run_interpreted(*arguments: str) -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    options = ["-q", "-x", "-p", "no:cacheprovider", "-p", "recorded_launches"]
    command = [sys.executable, "-m", "pytest", *options, *arguments]
    done = subprocess.run(command, cwd=SUPPORT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout


@pytest.mark.parametrize("op", ["attention and not gald", "gald", "segnext or nmf", "score_map"])
def test_launchers(op: str) -> None:
    run_interpreted("triton_launchers.py", "-k", op)


def test_launchers_of_pyramid_pool() -> None:
    run_interpreted("triton_pool_launchers.py")
