"""Draws score_maps.png: small logits, and the labels and losses at full resolution.

python docs/pictures/draw_score_maps.py
"""

from __future__ import annotations

import torch
from panels import COLOURS, figure, save, scene, show
from torch import Tensor
from torch.nn.functional import interpolate, one_hot

import attnops

SMALL = (12, 16)
IGNORED = 255


def logits_of(labels: Tensor) -> Tensor:
    """Logits `[1, 5, 12, 16]` of a network that is nearly right."""
    generator = torch.Generator().manual_seed(3)
    truth = one_hot(labels).permute(2, 0, 1)[None].float()
    small = interpolate(truth, SMALL, mode="area")
    return 7 * small + 0.9 * torch.randn(small.shape, generator=generator)


def main() -> None:
    _, labels = scene()
    logits = logits_of(labels)
    target = labels.clone()
    target[:, :14] = IGNORED
    nearest = logits.argmax(dim=1).repeat_interleave(8, 1).repeat_interleave(8, 2)[0]
    found = attnops.upsample_argmax(logits, labels.shape)[0]
    losses = attnops.upsample_cross_entropy(logits, target[None], reduction="none")[0]
    drawn, panels = figure(4, 1, height=2.75)
    show(panels[0], COLOURS[labels].permute(2, 0, 1), "truth, 96x128")
    show(panels[1], COLOURS[nearest].permute(2, 0, 1), "argmax of 12x16")
    show(panels[2], COLOURS[found].permute(2, 0, 1), "upsample_argmax")
    show(panels[3], losses, "loss of each pixel", cmap="magma")
    save(drawn, "score_maps", colours=64)


if __name__ == "__main__":
    main()
