"""Triton forward of depthwise_gelu.

Source: Guo et al., SegNeXt (NeurIPS 2022), figure 2.

Kernels of 3x3, SegNeXt's, have launchers of their own (three.py); the others go tap by tap
(general.py).
"""

from __future__ import annotations

import torch

from .. import _depthwise as depthwise
from . import general, three


def forward(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
) -> tuple[torch.Tensor]:
    """out [B, C, H, W] in the layout of x."""
    way = three if tuple(weight.shape[2:]) == (3, 3) else general
    return (way.forward(x, weight, bias),)


def refuse(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> str | None:
    """The reason why these kernels cannot run an input, None if they can."""
    return depthwise.refuse_map(x)
