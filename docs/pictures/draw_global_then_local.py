"""Draws global_then_local.png: what GALD's three steps do to a map.

python docs/pictures/draw_global_then_local.py
"""

from __future__ import annotations

import torch
from panels import figure, mark, save, scene, show
from torch import Tensor

import attnops

QUERY = (44, 93)  # sky between the house and a tree
KERNEL, DILATION = 5, 6
REACH = KERNEL // 2 * DILATION


def affinities(maps: Tensor, groups: int) -> Tensor:
    """What CGNL multiplies each group of channels by, `[1, groups]`: its result for theta = 1."""
    ones = torch.ones_like(maps)
    out = attnops.group_attention(ones, maps, maps, groups)
    return out[:, :: maps.shape[1] // groups, 0, 0]


def window_weights(maps: Tensor, row: int, column: int) -> Tensor:
    """Weights `[5, 5]` of the neighbours of one position: the values are one-hot."""
    _, _, height, width = maps.shape
    one_hot = torch.eye(height * width).view(1, height * width, height, width)
    out = attnops.local_attention(maps, maps, one_hot, KERNEL, DILATION, scale=2.0)
    at_places = out[0, :, row, column].view(height, width)
    return at_places[row - REACH : row + REACH + 1 : DILATION, column - REACH :][
        :, : 2 * REACH + 1 : DILATION
    ]


def main() -> None:
    picture, labels = scene(64, 86)
    maps = torch.nn.functional.one_hot(labels).permute(2, 0, 1)[None].float() - 0.3
    row, column = round(QUERY[0] * 64 / 96), round(QUERY[1] * 86 / 128)
    logits = attnops.pyramid_pool(maps[:, 2:3], (8,)).view(1, 1, 8, 8) * 8
    x = picture.mean(0)[None, None]
    gate = attnops.upsample_gate(logits, torch.ones_like(x), residual="none")
    gated = attnops.upsample_gate(logits, x, residual="input")

    drawn, panels = figure(4, 2, height=2.75)
    show(panels[0], picture, "picture")
    bars = affinities(maps, 5)[0]
    panels[1].bar(range(5), bars.tolist(), color="#3b6fb6")
    panels[1].set_title("CGNL: a per group", fontsize=16)
    panels[1].set_xticks(range(5), ["sky", "ground", "house", "tree", "ball"], fontsize=11)
    show(panels[2], logits[0, 0], "LDv1: 8x8 logits", aspect=0.75)
    show(panels[3], gate[0, 0], "its gate, resized", vmin=0, vmax=1)
    show(panels[4], x[0, 0], "x", cmap="gray", vmin=0, vmax=1.8)
    show(panels[5], gated[0, 0], "gate·x + x", cmap="gray", vmin=0, vmax=1.8)
    show(panels[6], picture, "LDv2: a query, 5x5")
    for i in range(-REACH, REACH + 1, DILATION):
        steps = range(-REACH, REACH + 1, DILATION)
        panels[6].plot([column + j for j in steps], [row + i] * KERNEL, "o", color="white", ms=5)
    mark(panels[6], row, column, size=13)
    show(panels[7], window_weights(maps, row, column), "its neighbours' weights", vmin=0)
    save(drawn, "global_then_local")


if __name__ == "__main__":
    main()
