"""`upsample_argmax` in plain PyTorch."""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import interpolate


def upsample_argmax(logits: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """The definition of `attnops.upsample_argmax`; every step in the dtype of its arguments."""
    full = interpolate(logits, size, mode="bilinear", align_corners=align_corners)
    return full.argmax(dim=1)
