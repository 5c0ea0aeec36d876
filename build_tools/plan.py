"""Decides, before anything is compiled, what will be built and says why the rest will not."""

from __future__ import annotations

import importlib.util
import platform
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from . import jobs
from .packages import ROOT, version
from .settings import DEFAULT_ARCHS, MIN_ARCH, Arch, BuildError, Settings
from .toolchain import (
    TORCH_REQUIREMENT,
    Compiler,
    Toolkit,
    Torch,
    find_ninja,
    find_toolkit,
    find_torch,
    usable_compiler,
)

# Compiler flags of the instruction sets that `csrc/cpu/<op>/kernels.cpp` are compiled for, by
# machine. The one that runs is chosen when the library is loaded.
ISA_FLAGS = {
    "x86_64": {
        "baseline": (),
        "avx2": ("-mavx2", "-mfma", "-mf16c"),
        "avx512": (
            *("-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"),
            *("-mfma", "-mf16c"),
        ),
    }
}
BASELINE_ONLY = {"baseline": ()}


@dataclass(frozen=True)
class Plan:
    """What a build will make. A reason stands where a part is left out, else ""."""

    settings: Settings
    compiler: Compiler | None = None
    torch: Torch | None = None
    ninja: str | None = None
    toolkit: Toolkit | None = None
    archs: tuple[Arch, ...] = ()
    isas: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pybind11: str = ""
    no_cpu: str = ""
    no_cuda: str = ""
    no_introspection: str = ""
    notes: tuple[str, ...] = ()

    @property
    def libraries(self) -> list[str]:
        reasons = (("cpu", self.no_cpu), ("pool", self.no_cpu), ("cuda", self.no_cuda))
        return [name for name, reason in reasons if not reason]

    @property
    def cpp_jobs(self) -> int:
        return self._jobs(jobs.CPP_JOB_BYTES)

    @property
    def cuda_jobs(self) -> int:
        return self._jobs(jobs.CUDA_JOB_BYTES)

    def check_requirements(self) -> None:
        """Raises BuildError where a package is missing that compiling needs.

        That is an error, not a reason to leave the libraries out: pip can install it, and without
        the libraries the result would silently be slow.
        """
        for found, name in ((self.torch, TORCH_REQUIREMENT), (self.ninja, "ninja")):
            if self.libraries and found is None:
                raise BuildError(
                    f"building the libraries needs {name}: pip install '{name}', or set "
                    "ATTNOPS_CPU=0 ATTNOPS_CUDA=0 for a pure-Python install"
                )

    def _jobs(self, size: int) -> int:
        cores, memory = jobs.available_cores(), jobs.available_memory()
        return jobs.job_count(size, cores, memory, self.settings.max_jobs)

    def describe(self) -> dict[str, object]:
        """The configuration as it is written beside the libraries (build.json)."""
        toolkit = self.toolkit
        return {
            "version": version(),
            "platform": sysconfig.get_platform(),
            "compiler": self.compiler.version if self.compiler else None,
            "torch": self.torch.version if self.torch else None,
            "cpu": {
                "built": not self.no_cpu,
                "reason": self.no_cpu,
                "isas": [] if self.no_cpu else list(self.isas),
            },
            "cuda": {
                "built": not self.no_cuda,
                "reason": self.no_cuda,
                "nvcc": toolkit.version if toolkit and not self.no_cuda else None,
                "archs": [] if self.no_cuda else [str(arch) for arch in self.archs],
            },
        }

    def table(self) -> Iterator[str]:
        """The configuration as a short table."""
        compiler = self.compiler
        rows = [("compiler", compiler.version if compiler else "none found")]
        if self.torch:
            rows.append(("torch", f"{self.torch.version} (stable ABI 2.10)"))
        rows.append(("CPU library", f"no: {self.no_cpu}" if self.no_cpu else ", ".join(self.isas)))
        if self.no_cuda:
            rows.append(("CUDA library", f"no: {self.no_cuda}"))
        else:
            archs = " ".join(map(str, self.archs))
            rows.append(("CUDA library", archs))
            rows.append(("CUDA toolkit", f"{self.toolkit.version} in {self.toolkit.root}"))
        no = self.no_introspection
        rows.append(("attnops._C", f"no: {no}" if no else f"pybind11 {self.pybind11}"))
        if self.libraries:
            jobs_text = f"{self.cpp_jobs} C++"
            if not self.no_cuda:
                jobs_text += f", {self.cuda_jobs} CUDA"
            rows.append(("jobs at once", jobs_text))
        rows += [("note", note) for note in self.notes]
        yield f"attnops {version()}: native build"
        for name, value in rows:
            yield f"  {name:<13} {value}"


def _select_archs(settings: Settings, toolkit: Toolkit) -> tuple[list[Arch], list[str]]:
    """The architectures that kernels and nvcc both support, and notes about the others.

    None may be left where nothing was asked for and the toolkit is too old.
    """
    supported = toolkit.supported_archs()
    chosen, notes = [], []
    for arch in settings.archs:
        if (arch.major, arch.minor) < MIN_ARCH:
            notes.append(f"architecture {arch} left out: attnops needs {MIN_ARCH[0]}.{MIN_ARCH[1]}")
        elif f"{arch.major}{arch.minor}" in supported:
            chosen.append(arch)
        elif settings.arch_list:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST asks for {arch}, which nvcc {toolkit.version} cannot "
                f"generate; leave it out, use another toolkit, or set ATTNOPS_CUDA=0"
            )
        else:
            notes.append(f"architecture {arch} left out: unknown to nvcc {toolkit.version}")
    if not chosen and (settings.arch_list or settings.cuda == "1"):
        raise BuildError(
            "no CUDA architecture is left to build for: set TORCH_CUDA_ARCH_LIST to 8.0 or later, "
            "or ATTNOPS_CUDA=0"
        )
    return chosen, notes


def _no_introspection(introspection: bool) -> str:
    if not introspection:
        return "only in source installs"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if not (Path(sysconfig.get_path("include")) / "Python.h").exists():
        return "Python.h is not installed"
    return ""


def make_plan(settings: Settings | None = None, introspection: bool = False) -> Plan:
    """Looks at the machine. Raises BuildError where what was asked for is impossible.

    A missing compiler or toolkit leaves a library out under "auto". torch and ninja may be missing
    here: a build frontend asks what to install with the same plan.
    introspection: whether the pybind11 module may be built (source installs).
    """
    settings = settings or Settings.from_environ()
    compiler, absent = usable_compiler(settings)

    no_cpu = "ATTNOPS_CPU=0" if settings.cpu == "0" else absent
    if not no_cpu and not (ROOT / "csrc/cpu/common/build_info.cpp").exists():
        no_cpu = "csrc/cpu is not in this source tree"
    if no_cpu and settings.cpu == "1":
        raise BuildError(f"ATTNOPS_CPU=1, but {no_cpu}")

    toolkit, remark = None, ""
    no_cuda = "ATTNOPS_CUDA=0" if settings.cuda == "0" else absent
    if not no_cuda and not (ROOT / "csrc/cuda/common/build_info.cu").exists():
        no_cuda = "csrc/cuda is not in this source tree"
    if not no_cuda:
        toolkit, remark = find_toolkit()
        no_cuda = "" if toolkit else remark
    if no_cuda and settings.cuda == "1":
        raise BuildError(f"ATTNOPS_CUDA=1, but {no_cuda}")

    archs, notes = _select_archs(settings, toolkit) if toolkit else ([], [])
    if toolkit and remark:
        notes.append(remark)
    if toolkit and not archs:
        no_cuda = (
            f"nvcc {toolkit.version} is too old: it generates code for none of {DEFAULT_ARCHS}"
        )
    no_introspection = absent or _no_introspection(introspection)
    # Without a compiler neither is used, so neither can be too old or incomplete.
    torch, ninja = (find_torch(), find_ninja()) if compiler else (None, None)
    if ninja is None and not no_introspection:
        no_introspection = "ninja is not installed"
    pybind11 = ""
    if not no_introspection:
        from importlib.metadata import version as installed_version

        pybind11 = installed_version("pybind11")
    return Plan(
        settings=settings,
        compiler=compiler,
        torch=torch,
        ninja=ninja,
        toolkit=toolkit,
        archs=tuple(archs),
        isas=ISA_FLAGS.get(platform.machine(), BASELINE_ONLY),
        pybind11=pybind11,
        no_cpu=no_cpu,
        no_cuda=no_cuda,
        no_introspection=no_introspection,
        notes=tuple(notes),
    )
