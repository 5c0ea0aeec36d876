"""Builds what a plan says and puts the results where the package expects them."""

from __future__ import annotations

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
    """One build at a time in a folder: two ninjas would overwrite each other's files.

    Some network file systems have no locks: the build goes on there, and says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "w") as handle:
        try:
            import fcntl  # absent outside Unix, where installs are pure and lock nothing

            fcntl.flock(handle, fcntl.LOCK_EX)
        except (ImportError, OSError) as error:
            print(
                f"note: no lock in {folder} ({error}): do not run two builds of this checkout "
                "at the same time",
                flush=True,
            )
        yield


def _run_ninja(plan: Plan) -> None:
    path = BUILD_DIR / "build.ninja"
    path.write_text(ninja_text(plan), encoding="utf-8", errors="surrogateescape")
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
        "lib/libattnops_pool.so": not plan.no_cpu,
        "lib/libattnops_cuda.so": not plan.no_cuda,
        f"_C{suffix}": not plan.no_introspection,
    }


def _put_into(package: Path, plan: Plan) -> list[Path]:
    placed = []
    for name, wanted in outputs(plan).items():
        target = package / name
        if wanted:
            _place(BUILD_DIR / target.name, target)
            placed.append(target)
        else:
            target.unlink(missing_ok=True)
    record = package / "lib" / "build.json"
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(plan.describe(), indent=2) + "\n", encoding="utf-8")
    return [*placed, record]


def build(plan: Plan, package: Path) -> list[Path]:
    """Builds into `package` (the folder of attnops/__init__.py); returns the files put there.

    What an earlier build left there and this plan leaves out is removed.
    """
    print("\n".join(plan.table()), flush=True)
    plan.check_requirements()
    try:
        if not any(outputs(plan).values()):
            return _put_into(package, plan)
        with _locked(BUILD_DIR):
            _run_ninja(plan)
            return _put_into(package, plan)
    except OSError as error:
        raise BuildError(
            f"the build cannot write its files ({error}): build in a copy of the sources, in a "
            "folder that is yours and has space left"
        ) from error
