"""The CUDA C++ implementations (csrc/cuda)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._dispatch import register
from ._load import load


def _refuse_pyramid_pool(x: Tensor, *args: Any) -> str | None:
    if x.device.type != "cuda":
        return f"it runs CUDA tensors only, got {x.device}"
    if x.shape[2] * x.shape[3] >= 2**31:
        return f"it indexes planes of less than 2^31 pixels, got {x.shape[2]}x{x.shape[3]}"
    return None


def register_all() -> None:
    """Load the library and register its ops.

    Raises:
        ImportError: the library is not there, or this PyTorch has no CUDA.
    """
    if torch.version.cuda is None:
        raise ImportError("this PyTorch is built without CUDA")
    load("cuda")
    ops = torch.ops.attnops_cuda
    register(
        "pyramid_pool",
        "cuda",
        forward=ops.pyramid_pool.default,
        backward=ops.pyramid_pool_backward.default,
        refuse=_refuse_pyramid_pool,
    )
