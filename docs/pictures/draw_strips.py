"""Draws strips.png: what a position sees through strip_conv.

python docs/pictures/draw_strips.py
"""

from __future__ import annotations

import torch
from panels import figure, save, show
from torch import Tensor

import attnops

STRIPS = (7, 11, 21)
SIDE = 29


def averaging(strips: tuple[int, ...]) -> tuple[Tensor, list]:
    """The local 5x5 kernel and pairs of strips, each an average."""
    pairs = [
        ((torch.full((1, 1, 1, k), 1 / k), None), (torch.full((1, 1, k, 1), 1 / k), None))
        for k in strips
    ]
    return torch.full((1, 1, 5, 5), 1 / 25), pairs


def response(x: Tensor, strips: tuple[int, ...], local: bool = True) -> Tensor:
    """strip_conv of `x`; without the local term only what the strips add."""
    weight, pairs = averaging(strips)
    out = attnops.strip_conv(x, weight, None, pairs)
    return out if local else out - attnops.strip_conv(x, weight, None)


def main() -> None:
    point = torch.zeros(1, 1, SIDE, SIDE)
    point[..., SIDE // 2, SIDE // 2] = 1
    drawn, panels = figure(5, 1, height=3.6)
    show(panels[0], response(point, ())[0, 0], "a: 5x5")
    for panel, k in zip(panels[1:], STRIPS, strict=False):
        show(panel, response(point, (k,), local=False)[0, 0], f"{k}x1 of 1x{k} of a")
    show(panels[4], response(point, STRIPS)[0, 0].pow(0.35), "sum (brightened)")
    save(drawn, "strips")


if __name__ == "__main__":
    main()
