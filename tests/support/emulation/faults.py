"""Copies of the kernels in which the environment turns a fault on: ATTNOPS_FAULT names it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from .toolchain import ROOT, build

BARRIER = "__syncthreads();"
# A fault of a barrier: one thread leaves it out.
WITHOUT_BARRIER = f"if (threadIdx.x != 5 || !FAULT) {BARRIER}"


def barriers(kernels: Sequence[str]) -> list[str]:
    """A name for every barrier of these files of csrc/cuda: file and position in it. The fault of
    that name leaves it out.
    """
    sources = [(name, (ROOT / "csrc/cuda" / name).read_text()) for name in kernels]
    return [f"{name} {k}" for name, text in sources for k in range(text.count(BARRIER))]


def faulty_csrc(
    folder: Path, kernels: Sequence[str], faults: Mapping[str, tuple[str, str, str]]
) -> Path:
    """A copy of csrc under `folder` that has the faults of `barriers(kernels)`, and `faults`.

    Args:
        folder: where the copy is made.
        kernels: files of csrc/cuda.
        faults: by name: file, what stands there, and what stands there in the copy, where FAULT
            is 1 if the fault is on, else 0.
    """
    csrc = folder / "csrc"
    shutil.copytree(ROOT / "csrc", csrc)
    for name in kernels:
        path = csrc / "cuda" / name
        text = path.read_text()
        for fault, (file, correct, broken) in faults.items():
            if file == name:
                assert correct in text, f"{fault}: {name} no longer holds {correct!r}"
                text = text.replace(correct, broken.replace("FAULT", f'is_faulty("{fault}")'), 1)
        parts = text.split(BARRIER)
        for k in range(len(parts) - 1):
            # A condition of one of `faults` may already stand before it.
            parts[k] += f'if (!is_faulty("{name} {k}")) {BARRIER}'
        path.write_text("".join(parts))
    launch = csrc / "cuda" / "common" / "launch.h"
    launch.write_text(
        launch.read_text()
        + "#include <cstdlib>\n#include <cstring>\n"
        + "inline bool is_faulty(const char* fault) {\n"
        + '  static const char* asked = std::getenv("ATTNOPS_FAULT");\n'
        + "  return asked && !std::strcmp(asked, fault);\n}\n"
    )
    return csrc


def faulty_programs(
    folder: Path, driver: str, kernels: Sequence[str], faults: Mapping[str, tuple[str, str, str]]
) -> Callable[[str], Path]:
    """Builds `driver` with `faulty_csrc` under a sanitizer; run with ATTNOPS_FAULT set, it has that
    fault.
    """
    csrc = faulty_csrc(folder, kernels, faults)
    return lambda sanitizer: build(driver, sanitizer, csrc=csrc, defines=("FLOAT32_ONLY",))


def is_caught(
    check: Callable[..., None], problems: Iterable, fault: str, report: str, orders: Sequence[str]
) -> bool:
    """Whether `check` of some problem under some order of threads fails, with `report` or, if that
    is empty, in any way.
    """
    for problem in problems:
        for order in orders:
            try:
                check(problem, order=order, ATTNOPS_FAULT=fault)
            except AssertionError as failure:
                if report in str(failure):
                    return True
    return False
