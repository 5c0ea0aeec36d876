"""Draws scales.png: scores of three scales of a picture, and three ways to merge them.

python docs/pictures/draw_scales.py
"""

from __future__ import annotations

import torch
from panels import COLOURS, figure, save, scene, show
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

import attnops

SIDES = ((48, 64), (24, 32), (12, 16))


def scores(labels: Tensor) -> list[Tensor]:
    """Class scores at three resolutions: fine ones are noisy, coarse ones are blurred."""
    generator = torch.Generator().manual_seed(2)
    truth = one_hot(labels).permute(2, 0, 1)[None].float()
    found = []
    for (height, width), noise in zip(SIDES, (1.0, 0.35, 0.1), strict=True):
        small = interpolate(truth, (height, width), mode="area")
        found.append(4 * small + 4 * noise * torch.randn(small.shape, generator=generator))
    return found


def attention_logits(labels: Tensor) -> Tensor:
    """Fine scales at edges and small things, coarse ones inside large regions, `[1, 3, H, W]`."""
    truth = one_hot(labels).permute(2, 0, 1)[None].float()
    inside = interpolate(interpolate(truth, SIDES[2], mode="area"), SIDES[0], mode="bilinear")
    certain = inside.amax(dim=1, keepdim=True)
    return torch.cat(
        [6 * (1 - certain), 3 * torch.ones_like(certain) - 1.5, 6 * certain - 3], dim=1
    )


def right(merged: Tensor, labels: Tensor) -> float:
    """Percentage of positions whose largest score is that of their class."""
    return 100 * float((merged.argmax(dim=1)[0] == labels).float().mean())


def main() -> None:
    _, labels = scene(*SIDES[0])
    maps, logits = scores(labels), attention_logits(labels)
    drawn, panels = figure(4, 2, height=2.9)
    show(panels[0], COLOURS[labels].permute(2, 0, 1), "truth")
    for panel, score, (height, width) in zip(panels[1:], maps, SIDES, strict=False):
        picture = COLOURS[score.argmax(dim=1)[0]].permute(2, 0, 1)
        show(panel, picture, f"scores, {height}x{width}")
    weights = logits.softmax(dim=1)[0]
    show(panels[4], weights, "weights: red fine")
    for panel, reduce in zip(panels[5:], ("attention", "mean", "max"), strict=True):
        merged = attnops.merge_scales(maps, logits, reduce)
        picture = COLOURS[merged.argmax(dim=1)[0]].permute(2, 0, 1)
        show(panel, picture, f"{reduce}: {right(merged, labels):.0f} % right")
    save(drawn, "scales", colours=64)


if __name__ == "__main__":
    main()
