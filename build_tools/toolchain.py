"""Finds the host compiler, the CUDA toolkit, PyTorch's headers and ninja."""

from __future__ import annotations

import glob
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from .settings import BuildError, Settings

MIN_TORCH = (2, 10)
# With its pre-releases, which rank below 2.10: NVIDIA's containers hold 2.10.0a0+..., and pip would
# replace them with PyPI's build otherwise. The same line stands in pyproject.toml.
TORCH_REQUIREMENT = "torch>=2.10.0.dev0"


def _output(command: list[str]) -> str:
    """stdout and stderr of a command, or "" where it cannot run."""
    try:
        result = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=60,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout if result.returncode == 0 else ""


@dataclass(frozen=True)
class Compiler:
    command: tuple[str, ...]
    version: str


def _compiler_words(cxx: str, path: str | None) -> list[str]:
    """$CXX as a command: a program, also one with spaces in its path, or one with arguments."""
    if shutil.which(cxx, path=path):
        return [cxx]
    try:
        return shlex.split(cxx)
    except ValueError as error:
        raise BuildError(f"CXX={cxx!r} is not a command line ({error}); correct it") from None


def find_compiler(environ: Mapping[str, str] = os.environ) -> Compiler | None:
    """$CXX, else c++, g++, clang++ from the path. None: there is none."""
    path = environ.get("PATH")
    given = _compiler_words(environ.get("CXX", "").strip(), path)
    for words in [given] if given else [["c++"], ["g++"], ["clang++"]]:
        program = shutil.which(words[0], path=path)
        lines = _output([program, *words[1:], "--version"]).splitlines() if program else []
        if lines:
            # ninja runs it in another folder: a relative path would lead nowhere there.
            return Compiler((os.path.abspath(program), *words[1:]), lines[0].strip())
        if given:
            raise BuildError(f"CXX={environ['CXX']!r} does not run; unset it or name a compiler")
    return None


def usable_compiler(settings: Settings) -> tuple[Compiler | None, str]:
    """The compiler that a build with these settings may use, or why it uses none."""
    if not settings.compiles:
        return None, "ATTNOPS_CPU=0 and ATTNOPS_CUDA=0"
    if sys.platform != "linux":
        return None, f"compiled on Linux only, this is {sys.platform}"
    compiler = find_compiler()
    return compiler, "" if compiler else "no C++ compiler found"


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: the folder that really holds it, not the one of a wrapper on the path."""

    root: Path
    version: str
    include: Path
    libraries: Path | None

    @property
    def nvcc(self) -> Path:
        return self.root / "bin" / "nvcc"

    def supported_archs(self) -> set[str]:
        """Numbers such as 90a that this nvcc can generate code for."""
        listed = _output([str(self.nvcc), "--list-gpu-arch"])
        return set(re.findall(r"compute_(\d+[af]?)", listed))


def _toolkit_at(root: Path) -> Toolkit | None:
    """The toolkit in a folder, or None where a part is missing."""
    nvcc = root / "bin" / "nvcc"
    if not os.access(nvcc, os.X_OK):
        return None
    targets = [root, *sorted(root.glob("targets/*-linux"))]
    include = next(
        (t / "include" for t in targets if (t / "include/cuda_runtime.h").exists()), None
    )
    release = re.search(r"release (\d+\.\d+)", _output([str(nvcc), "--version"]))
    if include is None or release is None:
        return None
    folders = [t / name for t in targets for name in ("lib64", "lib")]
    libraries = next((f for f in folders if glob.glob(str(f / "libcudart*"))), None)
    return Toolkit(root, release[1], include, libraries)


def _root_from_nvcc(nvcc: str) -> Path | None:
    """Asks nvcc where its toolkit is: a wrapper script's own folder says nothing."""
    for line in _output([nvcc, "--dryrun", "-c", "-x", "cu", "/dev/null"]).splitlines():
        match = re.match(r"#\$ TOP=(.+)", line)
        if match:
            return Path(match[1].strip()).resolve()
    return None


def _version_in(path: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", path))


def find_toolkit(
    environ: Mapping[str, str] = os.environ, pattern: str = "/usr/local/cuda*"
) -> tuple[Toolkit | None, str]:
    """The toolkit, and a remark: why there is none, or which setting was passed over.

    In this order: CUDA_HOME or CUDA_PATH if a toolkit really is there (wrappers on the path lead
    many tools to set /usr or /usr/local), what the nvcc on the path says, the newest folder that
    matches `pattern`.
    """
    refused = []
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if environ.get(name):
            toolkit = _toolkit_at(Path(environ[name]))
            if toolkit:
                return toolkit, ""
            refused.append(
                f"{name}={environ[name]} passed over: no bin/nvcc and include/cuda_runtime.h there"
            )
    nvcc = shutil.which("nvcc", path=environ.get("PATH"))
    root = _root_from_nvcc(nvcc) if nvcc else None
    candidates = [root] if root else []
    candidates += map(Path, sorted(glob.glob(pattern), key=_version_in, reverse=True))
    for candidate in candidates:
        toolkit = _toolkit_at(candidate)
        if toolkit:
            return toolkit, "; ".join(refused)
    refused.append(f"{nvcc} does not lead to a complete toolkit" if nvcc else "no nvcc found")
    return None, "; ".join(refused)


@dataclass(frozen=True)
class Torch:
    root: Path
    version: str

    @property
    def include(self) -> Path:
        return self.root / "include"

    @property
    def libraries(self) -> Path:
        return self.root / "lib"


def _torch_version(root: Path) -> str:
    try:
        text = (root / "version.py").read_text(encoding="utf-8")
    except OSError:
        text = ""
    found = re.search(r"""^__version__\b[^=\n]*=\s*["']([^"']+)["']""", text, re.MULTILINE)
    if found:
        return found[1]
    try:
        return metadata.version("torch")
    except metadata.PackageNotFoundError:
        return ""


def find_torch() -> Torch | None:
    """The installed PyTorch, found without importing it (which takes seconds)."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.origin:
        return None
    root = Path(spec.origin).parent
    version = _torch_version(root)
    number = re.match(r"(\d+)\.(\d+)", version)
    if not number:
        raise BuildError(
            f"torch in {root} gives its version as {version!r}, expected 2.10 or later"
        )
    if tuple(map(int, number.groups())) < MIN_TORCH:
        raise BuildError(f"attnops needs torch >= 2.10 to build and to run; {version} is installed")
    if not (root / "include/torch/csrc/stable/library.h").exists():
        raise BuildError(f"torch {version} in {root} comes without its C++ headers")
    return Torch(root, version)


def find_ninja(environ: Mapping[str, str] = os.environ) -> str | None:
    """ninja from its Python package (also in an environment that is not active), else the path."""
    spec = importlib.util.find_spec("ninja")
    if spec is not None and spec.origin:
        import ninja

        bundled = Path(ninja.BIN_DIR) / "ninja"
        if bundled.exists():
            return str(bundled)
    return shutil.which("ninja", path=environ.get("PATH"))
