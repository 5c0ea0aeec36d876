"""timm, which is an optional dependency."""

from __future__ import annotations

import importlib
from types import ModuleType

from torch import nn


def import_timm(module: str = "timm") -> ModuleType:
    """The module of that name, or an ImportError that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"this network takes its backbone from timm, which cannot be imported ({error}): "
            'pip install "attnops[models]"'
        ) from error


def without_inplace(net: nn.Module) -> None:
    """Let no activation of `net` write over its input, which hooks on the part before it have seen
    and may keep.
    """
    for module in net.modules():
        if getattr(module, "inplace", False) is True:
            module.inplace = False
