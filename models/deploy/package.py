"""The file of a deployment: an AOTInductor package with a JSON that says where it runs."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import zipfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from attnops._version import __version__

from .inner_ops import has_library
from .interface import Interface
from .processor import instruction_sets
from .report import Report

FACTS = "attnops.json"  # in the package, which is a zip archive
FORMAT = 1


def write_facts(path: Path, interface: Interface, report: Report, needs_library: bool) -> None:
    """Add to a package what it is of, and what it was compiled for; whether it calls the C++
    library of attnops.
    """
    facts = {
        "format": FORMAT,
        "attnops": __version__,
        "torch": _torch_version(),
        "processor": sorted(instruction_sets()),
        "library": needs_library,
        "interface": interface.to_dict(),
        "report": asdict(report),
    }
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].split("/")[0]  # PyTorch's archives have one folder
        archive.writestr(f"{root}/extra/{FACTS}", json.dumps(facts, indent=2))


def read_facts(path: Path) -> tuple[Interface, Report]:
    """What `write_facts` wrote into the package `path`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no deployment, was compiled for another PyTorch or processor, or calls
            the C++ library of attnops, which is not there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"load_deployed: there is no file {path}")
    facts = _facts(path)
    wanted, found = str(facts["torch"]), _torch_version()
    if wanted.split(".")[:2] != found.split(".")[:2]:
        raise ValueError(
            f"load_deployed: {path} was compiled for PyTorch {wanted}, this is {found}; deploy the "
            f"network again here, or install torch=={wanted}"
        )
    missing = [name for name in facts["processor"] if name not in instruction_sets()]
    if missing:
        raise ValueError(
            f"load_deployed: {path} was compiled for a processor with {', '.join(missing)}, which "
            "this one has not; deploy the network again on a processor like this one"
        )
    if facts["library"] and not has_library():
        raise ValueError(
            f"load_deployed: {path} calls attnops' C++ library for CPUs, which is not installed "
            "here; `python -m attnops.env` says why"
        )
    return Interface.from_dict(facts["interface"]), Report(**facts["report"])


def _facts(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith(f"/extra/{FACTS}"))
            facts = json.loads(archive.read(name))
    except (zipfile.BadZipFile, StopIteration, json.JSONDecodeError):
        raise ValueError(
            f"load_deployed: {path} is no deployment, as attnops.models.deploy(...).save(path) "
            "writes it"
        ) from None
    if facts["format"] != FORMAT:
        raise ValueError(
            f"load_deployed: {path} was written by attnops {facts['attnops']} in format "
            f"{facts['format']}, this version reads {FORMAT}; deploy the network again"
        )
    return facts


def _torch_version() -> str:
    return torch.__version__.split("+")[0]


def copy_package(source: Path, target: Path) -> None:
    """Copy a file; what `target` was stays there until the copy is complete."""
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    os.close(handle)
    try:
        shutil.copyfile(source, name)
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
