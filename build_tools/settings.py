"""What the user asked for: environment variables of the build, parsed and checked."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass

DEFAULT_ARCHS = "8.0;9.0;10.0+PTX"
# Below 8.0 there is no bfloat16 arithmetic and no asynchronous copy.
MIN_ARCH = (8, 0)


class BuildError(Exception):
    """A build that cannot go on; the message says what to do."""


@dataclass(frozen=True, order=True)
class Arch:
    """One entry of an architecture list, such as `9.0a+PTX`."""

    major: int
    minor: int
    suffix: str = ""
    ptx: bool = False

    @property
    def number(self) -> str:
        return f"{self.major}{self.minor}{self.suffix}"

    def __str__(self) -> str:
        return f"{self.major}.{self.minor}{self.suffix}{'+PTX' if self.ptx else ''}"

    def flags(self) -> list[str]:
        """nvcc's flags: machine code, and with +PTX the portable form for later devices too."""
        flags = [f"-gencode=arch=compute_{self.number},code=sm_{self.number}"]
        if self.ptx:
            flags.append(f"-gencode=arch=compute_{self.number},code=compute_{self.number}")
        return flags


def device_archs() -> list[Arch]:
    """Architectures of the devices in this machine, as the driver's tool reports them."""
    try:
        out = subprocess.run(
            ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        raise BuildError(
            'TORCH_CUDA_ARCH_LIST="native" needs a device, and nvidia-smi finds none; '
            'name the architectures instead, e.g. TORCH_CUDA_ARCH_LIST="9.0"'
        ) from None
    return parse_archs(";".join(out.split()))


def parse_archs(text: str) -> list[Arch]:
    """`8.0;9.0a 10.0+PTX` -> architectures, sorted and merged; `native`: those of this machine."""
    if text.strip().lower() == "native":
        return device_archs()
    merged: dict[tuple[int, int, str], bool] = {}
    for item in re.split(r"[;,\s]+", text.strip("; ,\t\n")):
        match = re.fullmatch(r"(\d+)\.(\d)([af]?)(\+PTX)?", item, flags=re.IGNORECASE)
        if not match:
            raise BuildError(
                f"TORCH_CUDA_ARCH_LIST: expected entries like 8.0, 9.0a or 10.0+PTX, got {item!r} "
                f"in {text!r}; correct it, unset it, or set ATTNOPS_CUDA=0"
            )
        key = (int(match[1]), int(match[2]), match[3].lower())
        merged[key] = merged.get(key, False) or bool(match[4])
    return sorted(Arch(*key, ptx=ptx) for key, ptx in merged.items())


def _mode(environ: Mapping[str, str], name: str) -> str:
    value = environ.get(name, "").strip() or "auto"
    if value not in ("auto", "0", "1"):
        raise BuildError(f"{name}: expected auto, 0 or 1, got {value!r}")
    return value


@dataclass(frozen=True)
class Settings:
    """cpu, cuda: "auto" (built where the tools are), "0" (never), "1" (an error if impossible).

    arch_list and jobs_text are judged only when a build needs them: machines carry values for other
    packages (TORCH_CUDA_ARCH_LIST in images without a toolkit), and an install that compiles
    nothing is no place to refuse them.
    """

    cpu: str = "auto"
    cuda: str = "auto"
    arch_list: str = ""
    jobs_text: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str] = os.environ) -> Settings:
        return cls(
            cpu=_mode(environ, "ATTNOPS_CPU"),
            cuda=_mode(environ, "ATTNOPS_CUDA"),
            arch_list=environ.get("TORCH_CUDA_ARCH_LIST", "").strip(),
            jobs_text=environ.get("MAX_JOBS", "").strip(),
        )

    @property
    def compiles(self) -> bool:
        """Whether any library may be built: otherwise no tool is looked for, none can be wrong."""
        return (self.cpu, self.cuda) != ("0", "0")

    @property
    def archs(self) -> list[Arch]:
        return parse_archs(self.arch_list or DEFAULT_ARCHS)

    @property
    def max_jobs(self) -> int | None:
        text = self.jobs_text
        if not text:
            return None
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise BuildError(f"MAX_JOBS: expected a positive number such as 4, got {text!r}")
        return int(text)
