"""Folders of runs: a new one each time, and where to go on."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import torch

import attnops

from .files import LAST, PREVIOUS, damage

_NUMBER = re.compile(r"^(?P<name>.+)-(?P<number>\d{4,})$")


def new_run(root: Path, name: str) -> Path:
    """Make the next folder `root/<name>-0001`, `-0002`, ..., never one that is there."""
    root.mkdir(parents=True, exist_ok=True)
    number = max((n for n, _ in runs(root, name)), default=0) + 1
    while True:
        folder = root / f"{name}-{number:04d}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:  # another process was faster
            number += 1


def runs(root: Path, name: str) -> list[tuple[int, Path]]:
    """(number, folder) of the runs of that name, the latest first."""
    found = []
    for folder in root.iterdir() if root.is_dir() else ():
        match = _NUMBER.match(folder.name)
        if match and match["name"] == name and folder.is_dir():
            found.append((int(match["number"]), folder))
    return sorted(found, reverse=True)


def to_resume(resume: str, root: Path, name: str) -> Path | None:
    """The checkpoint to go on from; None: there is none yet.

    A damaged one is named, and the one before it taken.

    Args:
        resume: "auto": of the latest run of that name under `root`; or a checkpoint, or the folder
            of a run.
        root: of the runs.
        name: of the runs.

    Raises:
        FileNotFoundError: `resume` is a path where nothing is.
        ValueError: there are checkpoints, but all are damaged.
    """
    if resume == "auto":
        latest = runs(root, name)
        return _first_good(_candidates(latest[0][1])) if latest else None
    path = Path(resume)
    if path.is_dir():
        candidates = _candidates(path)
        if not candidates:
            raise FileNotFoundError(f"--resume {path}: there is no {LAST} in that folder")
        return _first_good(candidates)
    if not path.is_file():
        raise FileNotFoundError(
            f"--resume {path}: no such checkpoint; give a .ckpt file, the folder of a run, or auto"
        )
    before = [path.parent / PREVIOUS] if path.name != PREVIOUS else []
    return _first_good([path, *(p for p in before if p.is_file())])


def _candidates(folder: Path) -> list[Path]:
    return [folder / name for name in (LAST, PREVIOUS) if (folder / name).is_file()]


def _first_good(candidates: list[Path]) -> Path | None:
    damaged = []
    for path in candidates:
        reason = damage(path)
        if reason is None:
            if damaged:
                print(f"attnops train: going on from {path} instead", file=sys.stderr)
            return path
        damaged.append(f"{path} ({reason})")
        print(f"attnops train: {path} is damaged: {reason}", file=sys.stderr)
    if damaged:
        raise ValueError(
            f"every checkpoint there is damaged: {'; '.join(damaged)}. Move them away to start anew"
        )
    return None


def environment() -> str:
    """What a run depends on besides its configuration, as text."""
    lines = [
        f"command: {' '.join(sys.argv)}",
        f"attnops: {attnops.__version__}",
        f"git revision: {_revision()}",
        f"Python: {platform.python_version()} on {platform.platform()}",
        f"CPU threads: {torch.get_num_threads()}",
    ]
    for name in ("torch", "torchvision", "lightning", "torchmetrics", "timm", "numpy"):
        try:
            lines.append(f"{name}: {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            lines.append(f"{name}: not installed")
    for index in range(torch.cuda.device_count()):
        lines.append(f"GPU {index}: {torch.cuda.get_device_name(index)}")
    settings = sorted(k for k in os.environ if k.startswith(("ATTNOPS_", "OMP_", "MKL_", "CUDA_")))
    settings += [k for k in ("LD_PRELOAD", "MALLOC_ARENA_MAX") if k in os.environ]
    lines += [f"{key}={os.environ[key]}" for key in settings]
    return "\n".join(lines) + "\n"


def _revision() -> str:
    """Of the checkout that attnops runs from, "+" behind it where files differ from it."""
    folder = Path(attnops.__file__).resolve().parent
    git = ["git", "-C", str(folder)]
    try:
        # An installed package may lie inside somebody else's checkout.
        tracked = subprocess.run(
            [*git, "ls-files", "--error-unmatch", "__init__.py"], capture_output=True, timeout=10
        )
        if tracked.returncode != 0:
            return "none (an installed package)"
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--untracked-files=no"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return commit + ("+" if changed else "")
