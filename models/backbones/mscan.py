"""MSCAN, the convolutional encoder of SegNeXt."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from attnops.nn import MSCABlock
from attnops.nn.functional import dense, is_channels_inner


class Stage(nn.Module):
    """Downsampling, blocks, and a LayerNorm over channels at every position.

    Args:
        down: halves the map (the first stage's: divides it by four).
        blocks: the blocks.
        channels: C of the result.
    """

    def __init__(self, down: nn.Sequential, blocks: Sequence[MSCABlock], channels: int) -> None:
        super().__init__()
        self.down = down
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        for block in self.blocks:
            x = block(x)
        return dense(self.norm(x.movedim(1, -1)).movedim(-1, 1), is_channels_inner(x))


def _halving(in_channels: int, out_channels: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(out_channels),
    ]


class MSCAN(nn.Module):
    """Four stages, each half the size of the one before; the first one a quarter of the image.

    The result of a stage's LayerNorm is both what the network returns and what the next stage
    gets. Drop path grows linearly over all blocks, from 0 to `drop_path_rate`.

    Source: Guo et al., SegNeXt (NeurIPS 2022), section 3.1, figure 2 and table 2; details that the
    paper leaves open as in the released code.

    Args:
        widths: channels of the stages.
        depths: blocks of the stages.
        expansions: of the feed-forward networks of the stages.
        drop_path_rate: of the last block.
        in_channels: of the images.

    Shapes: `[B, in_channels, H, W]` -> four maps `[B, C, h, w]`, sides halved and rounded
        up 2, 3, 4 and 5 times.

    Example:
        >>> import torch
        >>> from attnops.models.backbones.mscan import MSCAN
        >>> [x.shape[2] for x in MSCAN((32, 64, 160, 256), (1, 1, 1, 1))(torch.randn(2, 3, 97, 97))]
        [25, 13, 7, 4]
    """

    def __init__(
        self,
        widths: Sequence[int],
        depths: Sequence[int],
        expansions: Sequence[float] = (8, 8, 4, 4),
        drop_path_rate: float = 0.0,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        last = max(sum(depths) - 1, 1)
        rates = iter([drop_path_rate * k / last for k in range(sum(depths))])
        stages = []
        previous = in_channels
        for width, depth, expansion in zip(widths, depths, expansions, strict=True):
            if not stages:
                stem = [*_halving(previous, width // 2), nn.GELU(), *_halving(width // 2, width)]
                down = nn.Sequential(*stem)
            else:
                down = nn.Sequential(*_halving(previous, width))
            blocks = [MSCABlock(width, expansion, next(rates)) for _ in range(depth)]
            stages.append(Stage(down, blocks, width))
            previous = width
        self.stages = nn.ModuleList(stages)
        self.channels = tuple(widths)
        self.apply(_initialise)

    def forward(self, images: Tensor) -> list[Tensor]:
        features = []
        x = images
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features


def _initialise(module: nn.Module) -> None:
    """Normal weights with variance 2 / fan-out of a channel group."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.weight[0, 0].numel() * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, (2.0 / fan_out) ** 0.5)
        nn.init.zeros_(module.bias)
