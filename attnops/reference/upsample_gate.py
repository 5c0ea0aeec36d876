"""`upsample_gate` in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor

from ._resize import resize

ACTIVATIONS = {"identity": lambda x: x, "sigmoid": torch.sigmoid, "relu": torch.relu}


def upsample_gate(
    logits: Tensor,
    x: Tensor,
    activation: str = "sigmoid",
    activation_first: bool = False,
    residual: str = "input",
    input_weight: float = 1.0,
    align_corners: bool = False,
) -> Tensor:
    """The definition of `attnops.upsample_gate`; every step in the dtype of its arguments."""
    activate = ACTIVATIONS[activation]
    gate = activate(logits) if activation_first else logits
    gate = resize(gate, x.shape[2:], align_corners)
    if not activation_first:
        gate = activate(gate)
    out = gate * x
    if residual == "input":
        return out + input_weight * x
    return out + gate if residual == "gate" else out
