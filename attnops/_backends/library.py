"""Finding and loading a compiled library of attnops, and registering its ops."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from .._dispatch import BackendNotInstalled, IncompleteBackend, is_differentiable, register

REMEDY = "Reinstall attnops, or in a checkout run `pip install -e .` (`make build`) again"
FOLDER = Path(__file__).resolve().parents[1] / "lib"


def library_path(device: str) -> Path:
    """Where the library for `device` ("cpu" or "cuda") is, or would be."""
    return FOLDER / f"libattnops_{device}.so"


def load(device: str) -> None:
    """Load the library for `device`, so that torch.ops.attnops_<device> holds its ops.

    Raises:
        BackendNotInstalled: it was not built.
        ImportError: it cannot be loaded; the message says why.
    """
    path = library_path(device)
    if not path.is_file():
        raise BackendNotInstalled(
            f"the C++ library for {device} was not built ({path.name} is missing): reinstall from "
            "source with a compiler, or install a wheel"
        )
    try:
        torch.ops.load_library(path)
    except (OSError, RuntimeError) as error:
        reason = error.__cause__ or error
        raise ImportError(
            f"{path} could not be loaded: {reason}. It is damaged, or was built for another "
            f"processor, system or PyTorch: {REMEDY}"
        ) from error


def register_ops(
    device: str,
    refusals: Mapping[str, Callable[..., str | None]],
    completed: Mapping[str, Callable[..., tuple[Callable, Callable]]] | None = None,
) -> None:
    """Register the ops of the loaded library for `device`, each with its `refuse`.

    Args:
        completed: op -> (forward, backward of the library) -> those to register, where the library
            does not do all of it.

    Raises:
        IncompleteBackend: the library lacks ops; the others are registered.
    """
    ops, lacking = getattr(torch.ops, f"attnops_{device}"), []
    for op, refuse in refusals.items():
        forward, backward = getattr(ops, op, None), getattr(ops, f"{op}_backward", None)
        if forward is None or (backward is None and is_differentiable(op)):
            lacking.append(op)
            continue
        passes = _as_tuple(forward.default), None if backward is None else backward.default
        if completed and op in completed:
            passes = completed[op](*passes)
        register(op, device, forward=passes[0], backward=passes[1], refuse=refuse)
    if lacking:
        raise IncompleteBackend(
            lacking,
            f"{library_path(device)} lacks {', '.join(lacking)}: it was built from other sources "
            f"than the Python files beside it. {REMEDY}",
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
