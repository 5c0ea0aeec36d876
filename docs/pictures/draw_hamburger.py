"""Draws hamburger.png: a picture's features factorised by nmf, and the error update by update.

python docs/pictures/draw_hamburger.py
"""

from __future__ import annotations

import torch
from panels import TITLE, figure, save, scene, show
from torch import Tensor

import attnops

RANK = 3


def features(labels: Tensor) -> Tensor:
    """Sixteen non-negative channels for every class, with noise, `[1, 16, H·W]`."""
    generator = torch.Generator().manual_seed(1)
    of_class = torch.rand(5, 16, generator=generator).square()
    x = of_class[labels.flatten()].T[None]
    return (x + 0.12 * torch.randn(x.shape, generator=generator)).clamp(min=0)


def errors(x: Tensor, bases: Tensor, most: int = 7) -> list[float]:
    """Norm of X - A·Cᵀ over that of X, for 0 to `most` steps."""
    found = []
    for steps in range(most + 1):
        a, coef = attnops.nmf(x, bases, steps=steps)
        found.append(float((x - a @ coef.mT).norm() / x.norm()))
    return found


def main() -> None:
    _, labels = scene(64, 86)
    x = features(labels)
    generator = torch.Generator().manual_seed(4)
    bases = torch.nn.functional.normalize(torch.rand(1, 16, RANK, generator=generator), dim=1)
    a, coef = attnops.nmf(x, bases, steps=6)
    drawn, panels = figure(3, 2, height=2.8)
    lowest, highest = 0, float(x[0, 5].max())
    show(panels[0], x[0, 5].view(64, 86), "X, channel 5", vmin=lowest, vmax=highest)
    rebuilt = (a @ coef.mT)[0, 5].view(64, 86)
    show(panels[1], rebuilt, "A·Cᵀ, rank 3", vmin=lowest, vmax=highest)
    shown = errors(x, bases)
    panels[2].plot(range(len(shown)), shown, "o-", color="#3b6fb6", linewidth=2.5)
    panels[2].set_ylim(0, 1.08 * max(shown))
    panels[2].set_xticks(range(len(shown)))
    panels[2].set_yticks([0, 0.2, 0.4, 0.6])
    panels[2].tick_params(labelsize=13)
    panels[2].set_title("‖X − ACᵀ‖/‖X‖ after steps", fontsize=TITLE)
    for r, panel in enumerate(panels[3:]):
        show(panel, coef[0, :, r].view(64, 86), f"C, basis {r + 1}", cmap="magma")
    save(drawn, "hamburger")


if __name__ == "__main__":
    main()
