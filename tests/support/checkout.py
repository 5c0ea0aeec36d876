"""Copies, fake tools and builds of the checkout, for tests of the build and of packages.

Importing it makes `build_tools` importable: that is part of the checkout, not of the package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))

from build_tools import packages


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def fake_toolkit(root: Path, version: str = "13.0") -> Path:
    """A folder that looks like a toolkit; its nvcc answers the questions that the build asks."""
    script(
        root / "bin/nvcc",
        f"""case "$*" in
*--version*) echo "Cuda compilation tools, release {version}, V{version}.1" ;;
*--dryrun*) echo "#$ TOP={root}/bin/.." >&2 ;;
*--list-gpu-arch*) echo compute_80; echo compute_90 ;;
esac""",
    )
    (root / "include").mkdir()
    (root / "include/cuda_runtime.h").touch()
    return root


def source_copy(target: Path) -> Path:
    """The checkout without what was built in it."""
    at_the_top = shutil.ignore_patterns(".git", ".venv*", "build", "dist", "demo")
    anywhere = shutil.ignore_patterns(
        *("lib", "*.so", "*.egg-info", "__pycache__"),
        *(".pytest_cache", ".hypothesis", ".ruff_cache"),
    )

    def skip(folder: str, names: list[str]) -> set[str]:
        built = anywhere(folder, names)
        return built | at_the_top(folder, names) if Path(folder) == ROOT else built

    shutil.copytree(ROOT, target, ignore=skip, symlinks=True)
    for name in packages.MAPPED:
        (target / "attnops" / name).unlink(missing_ok=True)
    return target


def clean_environ(**changes: str) -> dict[str, str]:
    """This process's environment without build settings."""
    names = ("CXX", "CXXFLAGS", "CUDA_HOME", "CUDA_PATH", "NVCC_APPEND_FLAGS", "MAX_JOBS")
    names += ("TORCH_CUDA_ARCH_LIST", "PYTHONPATH")
    kept = {k: v for k, v in os.environ.items() if k not in names and "ATTNOPS" not in k}
    return kept | changes


def run(*command: object, cwd: Path, env: dict[str, str] | None = None) -> str:
    words = [str(word) for word in command]
    done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, f"{words} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, work: Path, env: dict[str, str]) -> Path:
    """A wheel of `source`, with everything but the native build cache under `work`."""
    work.mkdir(exist_ok=True)
    run(
        *(sys.executable, "setup.py", "-q", "egg_info", "--egg-base", work),
        *("build", "--build-base", work / "build"),
        *("bdist_wheel", "--dist-dir", work / "dist", "--bdist-dir", work / "bdist"),
        cwd=source,
        env=env,
    )
    (wheel,) = (work / "dist").glob("*.whl")
    return wheel
