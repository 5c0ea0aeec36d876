"""Which folders make up the one package `attnops`."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Top-level folders that are installed under `attnops`: under their own names they would overwrite
# other people's packages.
MAPPED = ("kernels", "models", "training", "benchmarks")


def mapped_folders(root: Path = ROOT) -> list[str]:
    return [name for name in MAPPED if (root / name / "__init__.py").is_file()]


def _packages_in(folder: Path, package: str) -> list[str]:
    found = [package]
    for child in sorted(folder.iterdir()):
        # A link is what `link_checkout` made: its target is listed under the same name already.
        if not child.is_symlink() and (child / "__init__.py").is_file():
            found += _packages_in(child, f"{package}.{child.name}")
    return found


def packages(root: Path = ROOT) -> list[str]:
    """Names of all packages of the distribution."""
    found = _packages_in(root / "attnops", "attnops")
    for name in mapped_folders(root):
        found += _packages_in(root / name, f"attnops.{name}")
    return found


def package_dir(root: Path = ROOT) -> dict[str, str]:
    """setuptools' `package_dir`: where packages live that are not where their names say."""
    return {"attnops": "attnops"} | {f"attnops.{name}": name for name in mapped_folders(root)}


def version(root: Path = ROOT) -> str:
    text = (root / "attnops" / "_version.py").read_text()
    return re.search(r'__version__ = "([^"]+)"', text).group(1)


def link_checkout(root: Path = ROOT) -> None:
    """Makes the checkout importable without installing it: `attnops/kernels -> ../kernels`, ...

    For machines where nothing can be or should be installed. The links are ignored by git and
    harmless beside an install: they lead to the same files.
    """
    for name in mapped_folders(root):
        link = root / "attnops" / name
        if not link.is_symlink():
            os.symlink(Path("..") / name, link)
