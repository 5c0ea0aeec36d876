"""Calls in a process that leaves the newer instructions of this processor alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch


def call_with_isa(isa: str, module: str, call: str, tensors: Any, folder: Path) -> Any:
    """The result of `call`, an expression of `t`, a module of this folder, and of `tensors`."""
    file = folder / "tensors.pt"
    torch.save(tensors, file)
    code = (
        f"import sys, torch, {module} as t; tensors = torch.load(sys.argv[1]); "
        f"torch.save({call}, sys.argv[1])"
    )
    here = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, str(file)],
        env={**os.environ, "ATTNOPS_ISA": isa, "PYTHONPATH": here},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    return torch.load(file)
