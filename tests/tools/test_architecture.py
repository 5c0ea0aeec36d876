"""The layers of CONTRIBUTING's table: no file imports or includes against it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAPPED = ("kernels", "models", "training", "benchmarks")
INCLUDE = re.compile(r'^#include "([^"]+)"', re.MULTILINE)
# Shared C++ folders that operators' folders may include.
SHARED = ("common", "cpu/common", "cpu/depthwise", "cpu/resize", "cuda/common")
# Files of `attnops/` itself that stand above the contract: they join the layers.
ENTRIES = ("attnops/__init__.py", "attnops/__main__.py", "attnops/cli.py", "attnops/env.py")


def table() -> dict[str, set[str]]:
    """folder -> what it may import, from CONTRIBUTING's table; "everything" is not in it."""
    row = re.compile(r"^\| `([^`]+/)`[^|]*\|[^|]*\|([^|]*)\|", re.MULTILINE)
    rows = row.findall(_text("CONTRIBUTING.md"))
    found = {folder: set(re.findall(r"`([^`]+/)`", cell)) for folder, cell in rows}
    return found | {folder: {"*"} for folder, cell in rows if cell.strip() == "everything"}


def _text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def _is_linked(path: Path) -> bool:
    return any(parent.is_symlink() for parent in path.parents)


def python_files() -> list[Path]:
    folders = [ROOT / "attnops", *(ROOT / name for name in MAPPED)]
    found = (path for folder in folders if folder.is_dir() for path in folder.rglob("*.py"))
    return sorted(path for path in found if not _is_linked(path))


def module_of(path: Path) -> list[str]:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    parts = parts if parts[0] == "attnops" else ["attnops", *parts]
    return parts[:-1] if parts[-1] == "__init__" else parts


def layer_of(module: list[str]) -> str:
    """The row of the table that a module belongs to; `attnops/_op` is part of the contract."""
    if len(module) > 1 and module[1] in MAPPED:
        return f"{module[1]}/"
    if len(module) > 1 and (ROOT / "attnops" / module[1]).is_dir() and module[1] != "_op":
        return f"attnops/{module[1]}/"
    return "attnops/"


def imported(path: Path) -> Iterator[list[str]]:
    """Modules (or names in them) of attnops that a file imports, wherever in it."""
    package = module_of(path) if path.name == "__init__.py" else module_of(path)[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            base = start + (node.module.split(".") if node.module else [])
            yield from ([*base, alias.name] for alias in node.names if base[0] == "attnops")
        elif isinstance(node, ast.Import):
            names = (alias.name.split(".") for alias in node.names)
            yield from (name for name in names if name[0] == "attnops")


def test_the_table_covers_every_folder() -> None:
    layers = {layer_of(module_of(path)) for path in python_files()}
    assert layers | {"csrc/"} <= set(table()), "a folder that CONTRIBUTING's table does not list"


@pytest.mark.parametrize("path", python_files(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_table(path: Path) -> None:
    if str(path.relative_to(ROOT)) in ENTRIES:
        return
    layer = layer_of(module_of(path))
    allowed = table()[layer]
    for target in imported(path):
        to = layer_of(target)
        fits = to == layer or "*" in allowed or to in allowed
        assert fits, f"{layer} may not import {to}: {'.'.join(target)}"


def test_the_contract_and_the_reference_need_torch_alone() -> None:
    known = {"torch", "numpy", "attnops", *__import__("sys").stdlib_module_names}
    for path in python_files():
        if layer_of(module_of(path)) not in ("attnops/", "attnops/reference/", "attnops/nn/"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                assert name.split(".")[0] in known, f"{path}: {name}"


def folder_of(file: Path) -> str:
    return str(file.parent.relative_to(ROOT / "csrc"))


def included(file: Path) -> list[Path]:
    """Headers of the project that a C++ or CUDA file names."""
    names = INCLUDE.findall(file.read_text(encoding="utf-8"))
    beside = ((file.parent / name, ROOT / "csrc" / name) for name in names)
    return [a if a.is_file() else b for a, b in beside if a.is_file() or b.is_file()]


def sources() -> list[Path]:
    kinds = (".h", ".cpp", ".cuh", ".cu")
    return sorted(path for path in (ROOT / "csrc").rglob("*") if path.suffix in kinds)


@pytest.mark.parametrize("file", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_an_op_includes_its_own_folder_and_shared_ones(file: Path) -> None:
    own = folder_of(file)
    for header in included(file):
        to = folder_of(header)
        assert to == own or to in SHARED, f"{own} includes {to}"
        assert not (own.startswith("common") and to != "common"), f"{own} includes {to}"
        assert {own.split("/")[0], to.split("/")[0]} != {"cpu", "cuda"}, f"{own} includes {to}"


def reached(files: list[Path]) -> set[Path]:
    """The files and all that they include, directly or not."""
    found, waiting = set(), list(files)
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            waiting += included(file)
    return found


def reading_order(op: str) -> list[str]:
    """The files that docs/design.md lists for an op, in its order."""
    text = _text("docs/design.md")
    section = re.search(rf"^#+ .*`{op}`[^\n]*\n(.*?)(?=^#|\Z)", text, re.MULTILINE | re.DOTALL)
    assert section, f"docs/design.md has no reading order of {op}"
    return re.findall(r"^\d+\. `([^`]+)`", section[1], re.MULTILINE)


@pytest.mark.parametrize("op, python, cpp", [("strip_conv", 5, 8), ("local_attention", 5, 7)])
def test_a_call_is_short_to_read(op: str, python: int, cpp: int) -> None:
    """The way of a call on a CPU, but for the vocabulary of csrc/cpu/common."""
    listed = [ROOT / name for name in reading_order(op)]
    assert all(path.is_file() for path in listed)
    assert sum(path.suffix == ".py" for path in listed) <= python
    assert sum(path.suffix in (".h", ".cpp") for path in listed) <= cpp
    folder = ROOT / "csrc" / "cpu" / op
    needed = reached([folder / "host.cpp", folder / "kernels.cpp"])
    vocabulary = {path for path in needed if folder_of(path) in ("common", "cpu/common")}
    assert needed - vocabulary <= set(listed), "read, but not listed"


@pytest.mark.parametrize(
    "folder", ["attnops", "kernels", "models", "training", "benchmarks", "csrc", "tests"]
)
def test_files_and_folders_stay_small(folder: str) -> None:
    kinds = (".py", ".h", ".cpp", ".cuh", ".cu")
    files = [p for p in (ROOT / folder).rglob("*") if p.suffix in kinds and not _is_linked(p)]
    for file in files:
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file
    for parent in {file.parent for file in files}:
        assert sum(file.parent == parent for file in files) <= 22, parent
