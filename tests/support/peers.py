"""Other people's implementations, as far as the extra `peers` brings them."""

from __future__ import annotations

import os
import sys
import types

import pytest


class _Anything(types.ModuleType):
    """A module in which every name is some class: enough for imports and isinstance."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def import_peer(name: str) -> types.ModuleType:
    """The module, else the test is skipped; in CI, which installs it, it has to be there.

    OpenCV, which mmcv needs, raises a plain ImportError on machines without a libGL.
    """
    if os.environ.get("CI"):
        __import__(name)
        return sys.modules[name]
    return pytest.importorskip(name, exc_type=ImportError)


def import_mmseg(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """mmseg.models on a stand-in for mmcv's compiled operators, which mmcv-lite leaves out."""
    import_peer("mmcv")
    monkeypatch.setitem(sys.modules, "mmcv.ops", _Anything("mmcv.ops"))
    return import_peer("mmseg.models")
