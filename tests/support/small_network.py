"""A network that is compiled in seconds, with what compiled code meets: folded and fused parts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attnops.models import SegmentationModel
from attnops.nn import Hamburger, MSCABlock

CHANNELS, CLASSES = 16, 5


class SmallNetwork(SegmentationModel):
    """A strided convolution with BatchNorm and ReLU, a block of SegNeXt, a Hamburger, classes."""

    smallest_side = 16

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 3, stride=4, padding=1, bias=False),
            nn.BatchNorm2d(CHANNELS),
            nn.ReLU(),
        )
        self.block = MSCABlock(CHANNELS, 2.0)
        self.context = Hamburger(CHANNELS, rank=4, seed=seed, norm_groups=4)
        self.classify = nn.Conv2d(CHANNELS, CLASSES, 1)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": self.classify(self.context(self.block(self.stem(images))))}


def small_network(seed: int | None = 0) -> SmallNetwork:
    """In evaluation, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        network = SmallNetwork(seed).eval()
        for norm in (network.stem[1], network.block.norm1, network.block.norm2):
            for statistic in (norm.running_mean, norm.weight, norm.bias):
                statistic.data.uniform_(0.2, 0.8)
            norm.running_var.uniform_(0.5, 1.5)
        network.block.scale1.data.fill_(0.5)
        network.block.scale2.data.fill_(0.5)
    return network
