"""The PEP 517 backend: setuptools', plus torch and ninja as build requirements where a compiler is.

Without a compiler the install is pure Python, and needs neither to be downloaded.
"""

from __future__ import annotations

import sys

from setuptools import build_meta
from setuptools.build_meta import (
    build_editable,
    build_sdist,
    build_wheel,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,
    prepare_metadata_for_build_wheel,
)

from .settings import BuildError, Settings
from .toolchain import TORCH_REQUIREMENT, usable_compiler

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]


def _native_requirements() -> list[str]:
    try:
        compiler, _ = usable_compiler(Settings.from_environ())
    except BuildError as error:
        sys.exit(f"error: {error}")
    return [TORCH_REQUIREMENT, "ninja"] if compiler else []


def get_requires_for_build_wheel(config_settings=None) -> list[str]:
    return build_meta.get_requires_for_build_wheel(config_settings) + _native_requirements()


def get_requires_for_build_editable(config_settings=None) -> list[str]:
    native = _native_requirements()
    introspection = ["pybind11"] if native else []
    return build_meta.get_requires_for_build_editable(config_settings) + native + introspection
