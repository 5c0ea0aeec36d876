"""Draws squeeze_attention.png: the gate of a squeeze-and-attention head, and where it goes.

python docs/pictures/draw_squeeze_attention.py
"""

from __future__ import annotations

import torch
from panels import figure, save, scene, show
from torch import Tensor

import attnops

SIDE = 8
HOUSE = 2


def gate_of(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """relu(logits), then resized: the op's result for x = 1 without a residual."""
    ones = torch.ones(1, 1, *size)
    return attnops.upsample_gate(logits, ones, "relu", activation_first=True, residual="none")


def main() -> None:
    picture, labels = scene()
    house = (labels == HOUSE).float()[None, None]
    x = picture.mean(0)[None, None]
    pooled = attnops.pyramid_pool(house, (SIDE,), reduce="max").view(1, 1, SIDE, SIDE)
    logits = 1.5 * pooled - 0.3
    options = {"activation": "relu", "activation_first": True, "residual": "gate"}
    out = attnops.upsample_gate(logits, x, **options)
    gate = gate_of(logits, tuple(x.shape[2:]))
    drawn, panels = figure(5, 1, height=2.75)
    show(panels[0], x[0, 0], "features x", cmap="gray", vmin=0, vmax=1)
    show(panels[1], logits[0, 0], "squeezed, 8x8", aspect=0.75)
    show(panels[2], gate[0, 0], "relu, resized: g")
    show(panels[3], (gate * x)[0, 0], "g·x: fine detail", cmap="gray")
    show(panels[4], out[0, 0], "g·x + g", cmap="gray")
    save(drawn, "squeeze_attention")


if __name__ == "__main__":
    main()
