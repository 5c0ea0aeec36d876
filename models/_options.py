"""Options of networks as plain Python values, which a configuration can hold."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any


def plain(value: Any) -> Any:
    """`value` with numbers and arrays of NumPy and of PyTorch as Python's, at any depth.

    Tuples and lists stay what they are; what has no plain form is returned as it is.

    Example:
        >>> import torch
        >>> from attnops.models._options import plain
        >>> plain({"scales": (torch.tensor(1.0), 2)})
        {'scales': (1.0, 2)}
    """
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return (tuple if isinstance(value, tuple) else list)(plain(inner) for inner in value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist") and hasattr(value, "ndim"):  # an array or number of either
        return value.tolist()
    return value
