"""Compiling the CUDA sources for sm_90 and for a runtime that has no GPU behind it."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from attnops.kernels.aot.cuda import SOURCES, cuda_cases

from .sass import tool

ARCH = "sm_90"
RUNTIME = Path(__file__).with_name("stand_in_runtime.c")


@dataclass(frozen=True)
class Built:
    """The library of attnops' CUDA ops, its cubins, and the runtime to load before it."""

    library: Path
    runtime: Path
    cubins: tuple[Path, ...]


def _digest(command: Sequence[str], source: Path) -> str:
    """Of all that a compilation may read, and of how it is called."""
    digest = hashlib.sha256(" ".join(command).encode())
    for folder in (source.parent, SOURCES / "common", SOURCES.parent / "common"):
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def cuda_ops() -> list[str]:
    """Ops that have CUDA sources."""
    folders = SOURCES.glob("*/") if SOURCES.is_dir() else ()
    return sorted(folder.name for folder in folders if folder.name != "common")


def _objects(folder: Path, ops: Sequence[str], jobs: int) -> list[Path]:
    """The sources of some ops as objects; those of unchanged sources are there already."""
    cases = {
        case.source: case
        for case in cuda_cases()[0]
        if case.source.relative_to(SOURCES).parts[0] in ("common", *ops)
    }
    tasks = []
    for source, case in cases.items():
        apart = ("-cubin", "-Xptxas=-v", "-o", f"-arch={case.arch}")
        command = [word for word in case.command if word not in apart]
        command += ["-c", f"-arch={ARCH}", "-lineinfo", "-Xcompiler=-fPIC"]
        name = "-".join(source.relative_to(SOURCES).with_suffix("").parts)
        tasks.append((command, folder / f"{name}-{_digest(command, source)}.o"))

    def compiled(task: tuple[list[str], Path]) -> Path:
        command, target = task
        if not target.exists():
            part = target.with_suffix(".part.o")
            subprocess.run([*command, "-o", str(part)], check=True, capture_output=True, text=True)
            part.rename(target)
        return target

    with ThreadPoolExecutor(jobs) as pool:
        found = list(pool.map(compiled, tasks))
    for target in found:  # what earlier sources left
        for other in folder.glob(target.name[: -len("0123456789abcdef.o")] + "?" * 16 + ".o"):
            if other != target:
                other.unlink(missing_ok=True)
    return found


def build(folder: Path, ops: Sequence[str], jobs: int) -> Built | str:
    """What recording launches of some ops needs, below `folder`; or the reason why there is none.

    Raises:
        subprocess.CalledProcessError: a source does not compile; `stderr` says why.
    """
    cases, skipped = cuda_cases()
    if not cases:
        return skipped
    toolkit = Path(cases[0].command[0]).resolve().parents[1]
    compiler = shutil.which("cc") or shutil.which("gcc")
    header = toolkit / "include" / "cuda_runtime_api.h"
    libraries = [path for path in (toolkit / "lib64", toolkit / "lib") if path.is_dir()]
    if compiler is None or not header.exists() or not libraries:
        return "the stand-in runtime needs a C compiler and the toolkit's headers and libraries"
    folder = folder.resolve()
    (folder / "runtime").mkdir(parents=True, exist_ok=True)
    objects = _objects(folder, ops, jobs)
    torch_libraries = Path(torch.__file__).parent / "lib"
    built = Built(folder / "libattnops_cuda.so", folder / "runtime" / "libcuda.so.1", ())
    links = [f"-L{torch_libraries}", "-ltorch_cpu", "-ltorch_cuda", f"-L{libraries[0]}", "-lcudart"]
    flags = ["-shared", "-fPIC", "-O1", "-Wl,-soname,libcuda.so.1", f"-I{header.parent}"]
    for command in (
        ["c++", "-shared", "-o", str(built.library), *map(str, objects), *links],
        [compiler, *flags, str(RUNTIME), "-o", str(built.runtime)],
    ):
        subprocess.run(command, check=True, capture_output=True, text=True)
    cubins = folder / "cubins"
    shutil.rmtree(cubins, ignore_errors=True)
    for path in objects:  # a folder each: files of different ops have one name
        (cubins / path.stem).mkdir(parents=True)
        tool("cuobjdump", "-xelf", "all", str(path), cwd=cubins / path.stem)
    return Built(built.library, built.runtime, tuple(sorted(cubins.glob("*/*.cubin"))))
