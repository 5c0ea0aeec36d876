"""Builds what a plan says and puts the results where the package expects them."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .ninja_file import ninja_text
from .packages import ROOT
from .plan import Plan
from .settings import BuildError

BUILD_DIR = ROOT / "build" / "native"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One build at a time in a folder: two ninjas would overwrite each other's files."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _run_ninja(plan: Plan) -> None:
    path = BUILD_DIR / "build.ninja"
    path.write_text(ninja_text(plan))
    command = [plan.ninja, "-C", str(BUILD_DIR), "-j", str(plan.cpp_jobs)]
    if subprocess.run(command).returncode != 0:
        raise BuildError(
            "the compiler failed (its messages are above). To install without the part that "
            "fails, set ATTNOPS_CUDA=0, or ATTNOPS_CPU=0 ATTNOPS_CUDA=0 for pure Python."
        )


def _place(built: Path, target: Path) -> None:
    """Copies under a temporary name first: a process may have the old library mapped."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.stat().st_mtime_ns >= built.stat().st_mtime_ns:
        return
    temporary = target.with_name(f".{target.name}.new")
    shutil.copy(built, temporary)
    temporary.replace(target)


def outputs(plan: Plan) -> dict[str, bool]:
    """Every file a build may leave in the package, and whether this plan builds it."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return {
        "lib/libattnops_cpu.so": not plan.no_cpu,
        "lib/libattnops_cuda.so": not plan.no_cuda,
        f"_C{suffix}": not plan.no_introspection,
    }


def build(plan: Plan, package: Path) -> list[Path]:
    """Builds into `package` (the folder of attnops/__init__.py); returns the files put there.

    What an earlier build left there and this plan leaves out is removed.
    """
    print("\n".join(plan.table()), flush=True)
    plan.check_requirements()
    placed = []
    with _locked(BUILD_DIR):
        if any(outputs(plan).values()):
            _run_ninja(plan)
        for name, wanted in outputs(plan).items():
            target = package / name
            if wanted:
                _place(BUILD_DIR / target.name, target)
                placed.append(target)
            else:
                target.unlink(missing_ok=True)
        record = package / "lib" / "build.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(json.dumps(plan.describe(), indent=2) + "\n")
    return [*placed, record]
