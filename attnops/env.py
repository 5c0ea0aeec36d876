"""What is installed, compiled, found and chosen here: `python -m attnops.env`, or `attnops env`."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from . import _dispatch
from ._backends.library import FOLDER, build_info
from ._console import command
from ._version import __version__


def environment() -> dict[str, Any]:
    """Everything a benchmark result or a bug report has to say about where it comes from.

    Returns:
        JSON-able: "versions", "platform", "cpu", "cuda", "libraries", "backends" (op -> backend ->
        {"available", "reason"}), "choice" (see `attnops.use_backend`) and "auto" (device type ->
        op -> the backend that "auto" tries first there).
    """
    found = _dispatch.backends()
    return {
        "versions": _versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cuda": _cuda(),
        "libraries": _libraries(),
        "backends": {
            op: {
                name: {"available": state.available, "reason": state.reason}
                for name, state in states.items()
            }
            for op, states in found.items()
        },
        "choice": _dispatch.current_backend(),
        "auto": {
            device: {
                op: next(name for name in order if states[name]) for op, states in found.items()
            }
            for device, order in _dispatch.PREFERENCE.items()
        },
    }


def _versions() -> dict[str, str | None]:
    versions = {"attnops": __version__, "python": platform.python_version()}
    versions["torch"] = str(torch.__version__)
    for name in ("triton", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return versions


def _field(path: str, key: str) -> str | None:
    """The first `key : value` of a /proc file."""
    try:
        for line in Path(path).read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    except OSError:
        pass
    return None


def _cpu() -> dict[str, Any]:
    memory = _field("/proc/meminfo", "MemTotal")
    return {
        "model": _field("/proc/cpuinfo", "model name") or platform.processor() or "unknown",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "memory_gib": round(int(memory.split()[0]) / 2**20, 1) if memory else None,
    }


def _driver() -> str | None:
    """Version of the NVIDIA kernel driver."""
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        try:
            done = subprocess.run(query, capture_output=True, text=True, timeout=20, check=True)
            return done.stdout.split()[0]
        except (OSError, subprocess.SubprocessError, IndexError):
            pass
    try:
        words = Path("/proc/driver/nvidia/version").read_text().split()
    except OSError:
        return None
    return next((w for w in words if w[0].isdigit() and w.count(".") >= 1), None)


def _cuda() -> dict[str, Any]:
    if not torch.cuda.is_available():
        built = torch.version.cuda is not None
        reason = "no CUDA device found" if built else "this PyTorch is built without CUDA"
        return {"version": torch.version.cuda, "driver": None, "devices": [], "reason": reason}
    devices = []
    for index in range(torch.cuda.device_count()):
        device = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "name": device.name,
                "capability": f"{device.major}.{device.minor}",
                "memory_gib": round(device.total_memory / 2**30, 1),
                "processors": device.multi_processor_count,
            }
        )
    return {
        "version": torch.version.cuda,
        "driver": _driver(),
        "devices": devices,
        "reason": None,
    }


def library(device: str) -> dict[str, Any] | None:
    """What the compiled library for `device` ("cpu" or "cuda") says of itself, where it is built.

    Returns:
        JSON-able, "isa" in it: the instructions that the library for CPUs uses here.
    """
    try:
        return build_info(device)
    except (OSError, AttributeError, ValueError):
        return None  # the reason stands in `backends`


def _build_record() -> dict[str, Any] | None:
    try:
        return json.loads((FOLDER / "build.json").read_text())
    except (OSError, ValueError):
        return None


def _introspection() -> dict[str, Any] | None:
    """What the module of source installs knows about compiler and processor."""
    try:
        module = importlib.import_module("attnops._C")
    except ImportError:
        return None
    return {
        "compiler": module.compiler(),
        "cpu_features": dict(module.cpu_features()),
        "built_isas": list(module.built_isas()),
        "built_archs": list(module.built_archs()),
    }


def _libraries() -> dict[str, Any]:
    return {
        "cpu": library("cpu"),
        "cuda": library("cuda"),
        "build": _build_record(),
        "introspection": _introspection(),
    }


def _grid(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _facts(values: dict[str, Any]) -> str:
    parts = []
    for key, value in values.items():
        if isinstance(value, dict) and all(isinstance(v, bool) for v in value.values()):
            value = "/".join(name for name, present in value.items() if present) or "none"
        elif isinstance(value, dict):
            value = "{" + _facts(value) + "}"
        elif isinstance(value, (list, tuple)):
            value = "/".join(map(str, value)) or "none"
        parts.append(f"{key} {'-' if value is None else value}")
    return ", ".join(parts)


def as_text(facts: dict[str, Any]) -> str:
    """`environment()` as lines for a terminal."""
    cpu, cuda, libraries = facts["cpu"], facts["cuda"], facts["libraries"]
    rows = [(name, version or "not installed") for name, version in facts["versions"].items()]
    rows.append(("platform", facts["platform"]))
    rows.append(
        (
            "CPU",
            f"{cpu['model']}, {cpu['cores']} cores, {cpu['threads']} threads, "
            f"{cpu['capability']}, {cpu['memory_gib']} GiB",
        )
    )
    rows.append(("CUDA", f"{cuda['version'] or 'none'} (of torch), driver {cuda['driver'] or '-'}"))
    for device in cuda["devices"]:
        rows.append(
            (
                "GPU",
                f"{device['name']}, sm {device['capability']}, {device['memory_gib']} GiB, "
                f"{device['processors']} processors",
            )
        )
    if cuda["reason"]:
        rows.append(("GPU", cuda["reason"]))
    for name, label in (
        ("cpu", "CPU library"),
        ("cuda", "CUDA library"),
        ("build", "last build"),
        ("introspection", "attnops._C"),
    ):
        rows.append((label, _facts(libraries[name]) if libraries[name] else "none"))
    lines = [*_grid(rows), "", *_backend_lines(facts)]
    return "\n".join(lines)


def _backend_lines(facts: dict[str, Any]) -> Iterator[str]:
    names = _dispatch.BACKENDS[1:]
    rows = [("op", *names)]
    reasons: dict[str, list[str]] = {}
    for op, states in facts["backends"].items():
        rows.append((op, *("yes" if states[name]["available"] else "no" for name in names)))
        for name in names:
            if not states[name]["available"]:
                reasons.setdefault(f"{name}: {states[name]['reason']}", []).append(op)
    yield from _grid(rows)
    for reason, ops in reasons.items():
        everywhere = len(ops) == len(facts["backends"])
        yield f"  no {reason}" if everywhere else f"  no {reason} ({', '.join(ops)})"
    yield ""
    yield f"chosen: {facts['choice']} (attnops.use_backend, ATTNOPS_BACKEND)"
    for device, choices in facts["auto"].items():
        chosen = ", ".join(f"{op}: {backend}" for op, backend in choices.items())
        yield f"auto, {device} tensors: {chosen}"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    facts = environment()
    print(json.dumps(facts, indent=2) if arguments.json else as_text(facts))
    return 0


@command
def main(arguments: Sequence[str] | None = None) -> int:
    """Print the environment; returns the exit status."""
    parser = argparse.ArgumentParser("python -m attnops.env", description=__doc__)
    add_arguments(parser)
    return run(parser.parse_args(arguments))


if __name__ == "__main__":
    raise SystemExit(main())
