"""Draws pyramid_attention.png: a picture pooled to four grids, and what one position takes of them.

python docs/pictures/draw_pyramid_attention.py
"""

from __future__ import annotations

import torch
from panels import figure, mark, save, scene, show
from torch import Tensor

import attnops

SIZES = (1, 3, 6, 8)
QUERIES = ((83, 34, "ball"), (20, 64, "sky"))


def anchors(picture: Tensor) -> Tensor:
    """The picture's colours at the cells of all grids, `[1, 3, 110]`."""
    return attnops.pyramid_pool(picture[None], SIZES)


def weights(picture: Tensor, sharpness: float = 60.0) -> Tensor:
    """The softmax itself, `[110, H, W]`: attention whose values are one-hot."""
    centred = picture[None] - picture.mean((1, 2)).view(1, 3, 1, 1)
    keys = attnops.pyramid_pool(centred, SIZES)
    return attnops.anchor_attention(centred, keys, torch.eye(keys.shape[2])[None], sharpness)[0]


def main() -> None:
    picture, _ = scene()
    levels = anchors(picture)[0].split([n * n for n in SIZES], dim=1)
    found = weights(picture)
    drawn, panels = figure(1 + len(SIZES), 1 + len(QUERIES), height=2.9)
    show(panels[0], picture, "picture, N = 96·128")
    for panel, level, n in zip(panels[1:], levels, SIZES, strict=False):
        show(panel, level.view(3, n, n), f"{n}x{n} anchors", aspect=0.75)
    for line, (row, column, name) in enumerate(QUERIES, start=1):
        here = panels[line * (1 + len(SIZES)) :]
        show(here[0], picture, f"query: {name}")
        mark(here[0], row, column)
        of_levels = found[:, row, column].split([n * n for n in SIZES])
        for panel, level, n in zip(here[1:], of_levels, SIZES, strict=False):
            share = 100 * float(level.sum())
            options = {"vmin": 0, "vmax": float(found[:, row, column].max()), "aspect": 0.75}
            show(panel, level.view(n, n), f"weights, {share:.0f} %", **options)
    save(drawn, "pyramid_attention", colours=96)


if __name__ == "__main__":
    main()
