"""Compiling the CUDA sources of a checkout for their resources: device code only, no library."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

from .ptxas import Resources, parse_report

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ROOT / "csrc" / "cuda"
_GLOBAL = re.compile(r"__global__\s+void\s+(?:__launch_bounds__\s*\([^)]*\)\s*)?(\w+)\s*\(")


@dataclass(frozen=True)
class CudaCase:
    """One source file for one architecture, with the compiler's command but for the output."""

    source: Path
    arch: str
    command: tuple[str, ...]
    demangle: str | None

    @property
    def label(self) -> str:
        return f"{self.source.relative_to(SOURCES)} {self.arch}"


def cuda_cases() -> tuple[list[CudaCase], str]:
    """What to compile, with the flags of the library's build; else the reason why nothing is."""
    if not SOURCES.is_dir():
        return [], "no CUDA sources beside this package (it is not a checkout)"
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from build_tools.ninja_file import TARGET_VERSION
    from build_tools.plan import make_plan

    plan = make_plan()
    if plan.toolkit is None or plan.no_cuda:
        return [], plan.no_cuda
    includes = [f"-I{ROOT / 'csrc'}", "-isystem", str(plan.torch.include)]
    flags = ["-std=c++17", "-O3", TARGET_VERSION, "-DUSE_CUDA", *includes]
    if len(plan.compiler.command) == 1:
        flags.append(f"-ccbin={plan.compiler.command[0]}")
    filters = (plan.toolkit.root / "bin" / "cu++filt", "cu++filt", "c++filt")
    demangle = next((found for name in filters if (found := shutil.which(name))), None)
    cases = []
    for source in sorted(SOURCES.rglob("*.cu")):
        for arch in plan.archs:
            command = (
                str(plan.toolkit.nvcc),
                *flags,
                f"-arch=sm_{arch.number}",
                "-cubin",
                "-Xptxas=-v",
                str(source),
                "-o",
            )
            cases.append(CudaCase(source, f"sm_{arch.number}", command, demangle))
    return cases, ""


def global_names(folder: Path = SOURCES) -> set[str]:
    """The kernels that the sources define."""
    files = [*folder.rglob("*.cu"), *folder.rglob("*.cuh")]
    return {name for file in files for name in _GLOBAL.findall(file.read_text())}


def base_name(signature: str) -> str:
    """`void a::kernel<float, 2>(int)` -> `kernel`."""
    before = re.sub(r"<.*", "", signature.split("(anonymous namespace)::")[-1].split("(")[0])
    return before.split("::")[-1].split()[-1]


def compile_cuda(case: CudaCase) -> list[Resources]:
    """What the kernels of one file take on one architecture, under their C++ names.

    Raises:
        subprocess.CalledProcessError: the file does not compile; `stderr` says why.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [*case.command, str(Path(folder) / "kernels.cubin")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    found = parse_report(done.stdout + done.stderr)
    if not found or case.demangle is None:
        return found
    names = "\n".join(resources.name for resources in found)
    shown = subprocess.run([case.demangle], input=names, capture_output=True, text=True, check=True)
    return [
        replace(resources, name=name)
        for resources, name in zip(found, shown.stdout.splitlines(), strict=True)
    ]
