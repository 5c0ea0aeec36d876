"""Compiling the launched variants of the Triton kernels for a GPU that need not be there."""

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import pkgutil
import re
import subprocess
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from .._launch import AotCase
from .ptxas import Resources, parse_report

PACKAGE = __name__.rsplit(".", 2)[0]


def modules() -> list[ModuleType]:
    """Every module of the package but those of this check."""
    path = importlib.import_module(PACKAGE).__path__
    names = [info.name for info in pkgutil.walk_packages(path, f"{PACKAGE}.")]
    apart = (f"{PACKAGE}.aot", f"{PACKAGE}._interpreter_repairs")
    return [importlib.import_module(name) for name in names if not name.startswith(apart)]


@functools.cache
def all_cases() -> tuple[AotCase, ...]:
    """What the modules list in their `aot_cases`."""
    return tuple(
        case for module in modules() if hasattr(module, "aot_cases") for case in module.aot_cases()
    )


def kernel_names(sources: list[ModuleType] | None = None) -> set[str]:
    """Jitted functions of the modules that no other one names: kernels, not helpers of kernels."""
    functions = [
        value
        for module in (modules() if sources is None else sources)
        for value in vars(module).values()
        if isinstance(value, JITFunction) and value.fn.__module__ == module.__name__
    ]
    named = {name for function in functions for name in function.fn.__code__.co_names}
    return {function.__name__ for function in functions} - named


def label(case: AotCase) -> str:
    """A variant in words: element types, constants, warps and stages."""
    dtypes = sorted(set(case.pointers.values()) & {"fp16", "bf16"}) or ["fp32"]
    constants = [f"{name}={value}" for name, value in case.launch.constants.items()]
    launch = [f"warps={case.launch.warps}", f"stages={case.launch.stages}"]
    return " ".join([*dtypes, *constants, *launch]).replace(", ", ",")


def _source(case: AotCase) -> ASTSource:
    signature, attributes = {}, {}
    for parameter in case.kernel.params:
        name = parameter.name
        if name in case.launch.constants:
            signature[name] = "constexpr"
        elif name in case.pointers:
            signature[name] = f"*{case.pointers[name]}"
            if not parameter.do_not_specialize_on_alignment:
                attributes[(parameter.num,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = case.scalars.get(name, "i32")
    return ASTSource(case.kernel, signature, dict(case.launch.constants), attributes)


def _ptxas(ptx: str, capability: int) -> str:
    """The report of the ptxas that Triton itself uses for the architecture."""
    tools = triton.knobs.nvidia
    blackwell = getattr(tools, "ptxas_blackwell", tools.ptxas)
    tool = blackwell if capability >= 100 else tools.ptxas
    target = re.search(r"^\.target (\w+)", ptx, re.MULTILINE)[1]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "kernel.ptx"
        source.write_text(ptx)
        command = [tool.path, "-v", f"--gpu-name={target}", str(source), "-o", f"{source}.o"]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout + done.stderr


def compile_case(case: AotCase, capability: int) -> tuple[Resources, int]:
    """What one variant takes on one architecture (80, 90, ...), and its threads."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _ptxas_log():
        compiled: Any = triton.compile(
            _source(case),
            target=GPUTarget("cuda", capability, 32),
            options=case.launch.options(),
        )
    # Nothing is printed where the kernel came out of Triton's cache.
    log = printed.getvalue()
    if "Compiling entry function" not in log:
        log = _ptxas(compiled.asm["ptx"], capability)
    (resources,) = parse_report(log)
    found = Resources(
        name=case.kernel.__name__,
        arch=f"sm_{capability}",
        registers=resources.registers,
        spill_stores=resources.spill_stores,
        spill_loads=resources.spill_loads,
        shared=compiled.metadata.shared,
    )
    return found, 32 * compiled.metadata.num_warps


@contextlib.contextmanager
def _ptxas_log() -> Any:
    """Has Triton print ptxas's report, where its version can: saves a second run."""
    knobs = triton.knobs.nvidia
    if not hasattr(knobs, "dump_ptxas_log"):
        yield
        return
    before = knobs.dump_ptxas_log
    knobs.dump_ptxas_log = True
    try:
        yield
    finally:
        knobs.dump_ptxas_log = before
