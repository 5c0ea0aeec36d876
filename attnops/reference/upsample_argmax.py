"""`upsample_argmax` in plain PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from ._resize import resize


def upsample_argmax(
    logits: Tensor, size: Sequence[int] | int, align_corners: bool = False
) -> Tensor:
    """The definition of `attnops.upsample_argmax`; every step in the dtype of its arguments."""
    height, width = size if isinstance(size, Sequence) else (size, size)
    return resize(logits, (height, width), align_corners).argmax(dim=1)
