"""Finding and loading a compiled library of attnops."""

from __future__ import annotations

import ctypes
import json
from pathlib import Path
from typing import Any

import torch

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


def build_info(device: str) -> dict[str, Any]:
    """How the loaded library for `device` was compiled, as the library itself tells."""
    function = getattr(ctypes.CDLL(str(library_path(device))), f"attnops_{device}_build_info")
    function.restype = ctypes.c_char_p
    return json.loads(function())
