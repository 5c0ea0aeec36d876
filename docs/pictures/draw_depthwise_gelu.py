"""Draws depthwise_gelu.png: a channel, its convolution, and the GELU of it.

python docs/pictures/draw_depthwise_gelu.py
"""

from __future__ import annotations

import torch
from panels import TITLE, figure, save, scene, show

import attnops

# A difference of rows: bright above dark is positive.
KERNEL = torch.tensor([[1.0, 2.0, 1.0], [0.0, 0.0, 0.0], [-1.0, -2.0, -1.0]])


def main() -> None:
    picture, _ = scene()
    x = picture.mean(0)[None, None]
    weight = KERNEL.view(1, 1, 3, 3)
    u = attnops.strip_conv(x, weight, None)  # without strips: the convolution alone
    out = attnops.depthwise_gelu(x, weight)
    inside = (slice(1, -1), slice(1, -1))
    drawn, panels = figure(4, height=2.75)
    show(panels[0], x[0, 0], "x", cmap="gray", vmin=0, vmax=1)
    show(panels[1], u[0, 0][inside], "u = depthwise(x)", cmap="RdBu_r", vmin=-2, vmax=2)
    show(panels[2], out[0, 0][inside], "u·Φ(u)", cmap="RdBu_r", vmin=-2, vmax=2)
    line = torch.linspace(-3, 3, 121)
    one = torch.ones(1, 1, 1, 1)
    curve = attnops.depthwise_gelu(line.view(1, 1, 1, -1), one)
    panels[3].plot(line, curve.flatten(), color="#3b6fb6", linewidth=2.5)
    panels[3].axhline(0, color="#999999", linewidth=1)
    panels[3].axvline(0, color="#999999", linewidth=1)
    panels[3].set_title("GELU", fontsize=TITLE)
    save(drawn, "depthwise_gelu")


if __name__ == "__main__":
    main()
