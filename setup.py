"""Builds the C++ and CUDA libraries and maps the top-level folders under the package `attnops`.

Metadata is in pyproject.toml, the build itself in build_tools/ (docs/building.md explains both).
"""

from __future__ import annotations

import functools
import shutil
import sys
from pathlib import Path
from typing import ClassVar

import setuptools

if int(setuptools.__version__.split(".")[0]) < 77:
    sys.exit(
        f"attnops needs setuptools >= 77 to build, {setuptools.__version__} is installed: "
        "pip install 'setuptools>=77,<82'"
    )

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext

sys.path.insert(0, str(Path(__file__).resolve().parent))
from build_tools import native
from build_tools.packages import ROOT, package_dir, packages
from build_tools.plan import Plan, make_plan
from build_tools.settings import BuildError


@functools.cache
def checked_plan(introspection: bool) -> Plan:
    try:
        return make_plan(introspection=introspection)
    except BuildError as error:
        sys.exit(f"error: {error}")


class NativeDistribution(Distribution):
    """Decides between a pure wheel and one for this platform."""

    def has_ext_modules(self) -> bool:
        return bool(checked_plan(introspection=False).libraries)


class BuildAlways(build):
    """Runs build_ext even with nothing to compile: it records why beside the package.

    Starts from an empty folder: setuptools leaves in it what an earlier version of the sources put
    there, and packs it.
    """

    sub_commands: ClassVar = [
        (name, None if name == "build_ext" else condition) for name, condition in build.sub_commands
    ]

    def run(self) -> None:
        if not getattr(self, "editable_mode", False):
            shutil.rmtree(Path(self.build_lib) / "attnops", ignore_errors=True)
        super().run()


class BuildNative(build_ext):
    """Hands over to build_tools, which knows about CUDA, instruction sets and incremental builds.

    The pybind11 module belongs to one Python, the libraries to all: it is left out of wheels.
    """

    def run(self) -> None:
        in_source = bool(self.inplace or self.editable_mode)
        package = ROOT / "attnops" if in_source else Path(self.build_lib) / "attnops"
        try:
            self.built = native.build(checked_plan(introspection=in_source), package)
        except BuildError as error:
            sys.exit(f"error: {error}")

    def get_outputs(self) -> list[str]:
        return [str(path) for path in getattr(self, "built", [])]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return sorted(str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.is_file())


class PlatformWheel(bdist_wheel):
    """One wheel for every Python: the libraries do not depend on it."""

    def run(self) -> None:
        # What an interrupted run left there would be packed too.
        shutil.rmtree(self.bdist_dir, ignore_errors=True)
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    distclass=NativeDistribution,
    packages=packages(),
    package_dir=package_dir(),
    package_data={
        "attnops": ["py.typed"],
        "attnops.benchmarks": ["results/**/*"],
        "attnops.training": ["recipes/*.yaml", "data/classes/*.txt"],
    },
    include_package_data=False,
    cmdclass={
        "bdist_wheel": PlatformWheel,
        "build": BuildAlways,
        "build_ext": BuildNative,
    },
)
