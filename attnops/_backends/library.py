"""Finding and loading a compiled library of attnops, and registering its ops."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .._dispatch import register

FOLDER = Path(__file__).resolve().parents[1] / "lib"


def library_path(device: str) -> Path:
    """Where the library for `device` ("cpu" or "cuda") is, or would be."""
    return FOLDER / f"libattnops_{device}.so"


def load(device: str) -> None:
    """Load the library for `device`, so that torch.ops.attnops_<device> holds its ops.

    Raises:
        ImportError: it is not there or cannot be loaded; the message says why.
    """
    path = library_path(device)
    if not path.is_file():
        raise ImportError(
            f"the C++ library for {device} was not built ({path.name} is missing): reinstall from "
            "source with a compiler, or install a wheel"
        )
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        raise ImportError(f"{path.name} could not be loaded: {error}") from error


def register_ops(device: str, refusals: Mapping[str, Callable[..., str | None]]) -> None:
    """Register the ops of the loaded library for `device`, each with its `refuse`."""
    ops = getattr(torch.ops, f"attnops_{device}")
    for op, refuse in refusals.items():
        forward = getattr(ops, op).default
        backward = getattr(ops, f"{op}_backward", None)
        register(
            op,
            device,
            forward=_as_tuple(forward),
            backward=None if backward is None else backward.default,
            refuse=refuse,
        )


def _as_tuple(forward: torch._ops.OpOverload) -> Callable[..., Any]:
    """`forward` with a tuple of outputs, which PyTorch unpacks where there is only one."""
    if len(forward._schema.returns) > 1:
        return forward
    return lambda *args: (forward(*args),)


def build_info(device: str) -> dict[str, Any]:
    """How the loaded library for `device` was compiled, as the library itself tells."""
    function = getattr(ctypes.CDLL(str(library_path(device))), f"attnops_{device}_build_info")
    function.restype = ctypes.c_char_p
    return json.loads(function())
