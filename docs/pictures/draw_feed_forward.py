"""Draws feed_forward.png: a picture, the GELUs of two of the channels between, and the result.

python docs/pictures/draw_feed_forward.py
"""

from __future__ import annotations

import torch
from panels import figure, save, scene, show

import attnops

GREY = (0.3, 0.59, 0.11)
ROWS = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])


def main() -> None:
    """Four channels between: brightness, of which the depthwise convolution takes differences of
    rows and of columns, and their opposites; the GELUs of a pair add up to the size of an edge.
    """
    picture, _ = scene()
    x = picture[None]
    expand = torch.tensor([GREY] * 4)[..., None, None]
    depthwise = torch.stack([ROWS, -ROWS, ROWS.T, -ROWS.T])[:, None]
    each = torch.eye(4)[..., None, None]
    between = attnops.feed_forward(x, expand, depthwise, each)
    out = attnops.feed_forward(x, expand, depthwise, torch.ones(1, 4, 1, 1))
    inside = (slice(1, -1), slice(1, -1))
    drawn, panels = figure(4, height=2.75)
    show(panels[0], picture, "x, 3 channels")
    for panel, channel, name in zip(panels[1:3], (0, 2), ("rows", "columns"), strict=True):
        show(panel, between[0, channel][inside], f"GELU, {name}", cmap="gray", vmin=0, vmax=1.5)
    show(panels[3], out[0, 0][inside], "sum of 4 GELUs", cmap="gray", vmin=0, vmax=2)
    save(drawn, "feed_forward")


if __name__ == "__main__":
    main()
