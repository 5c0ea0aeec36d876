"""MSCAN, the convolutional encoder of SegNeXt."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from attnops import depthwise_gelu
from attnops.nn import MSCA
from attnops.nn.functional import convolve, dense, is_channels_inner, is_depthwise

LAYER_SCALE = 0.01


class Attention(nn.Module):
    """1x1 convolution, GELU, MSCA, 1x1 convolution, and the input again.

    Args:
        channels: C of the map `[B, C, H, W]`.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, channels, 1)
        self.gate = MSCA(channels)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.project_out, self.gate(gelu(convolve(self.project_in, x)))) + x


class FeedForward(nn.Module):
    """1x1 convolution to `hidden` channels, depthwise 3x3 convolution, GELU, 1x1 convolution back.

    Args:
        channels: C of the map `[B, C, H, W]`.
        hidden: channels between.
    """

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Conv2d(channels, hidden, 1)
        self.depthwise = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden)
        self.contract = nn.Conv2d(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = convolve(self.expand, x)
        if is_depthwise(self.depthwise):
            hidden = depthwise_gelu(hidden, self.depthwise.weight, self.depthwise.bias)
        else:
            hidden = gelu(self.depthwise(hidden))
        return convolve(self.contract, hidden)


class Block(nn.Module):
    """x = x + s1·Attention(BN(x)), then x = x + s2·FeedForward(BN(x)).

    As Attention adds its own input, the first BatchNorm's output is added a second time, scaled.
    The branches are dropped independently of each other, per sample, and those that are kept are
    divided by the probability to be kept.

    Args:
        channels: C of the map `[B, C, H, W]`.
        expansion: hidden channels of the feed-forward network over C.
        drop_path: probability that a sample loses a branch in training.
    """

    def __init__(self, channels: int, expansion: float, drop_path: float) -> None:
        super().__init__()
        self.drop_path = drop_path
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = Attention(channels)
        self.scale1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.norm2 = nn.BatchNorm2d(channels)
        self.feed_forward = FeedForward(channels, int(channels * expansion))
        self.scale2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self._factor(self.scale1, x), self.attention(self.norm1(x)))
        return torch.addcmul(x, self._factor(self.scale2, x), self.feed_forward(self.norm2(x)))

    def _factor(self, scale: Tensor, x: Tensor) -> Tensor:
        """The branch's factor, `[C, 1, 1]`, or `[B, C, 1, 1]` where samples lose it."""
        factor = scale[:, None, None]
        if not self.training or self.drop_path == 0.0:
            return factor
        kept = 1.0 - self.drop_path
        # Of a fixed dtype: the branch may be dropped in half precision, the rate not rounded.
        draws = torch.rand((x.shape[0], 1, 1, 1), device=x.device) < kept
        return factor * (draws.to(scale.dtype) / kept)


class Stage(nn.Module):
    """Downsampling, blocks, and a LayerNorm over channels at every position.

    Args:
        down: halves the map (the first stage's: divides it by four).
        blocks: the blocks.
        channels: C of the result.
    """

    def __init__(self, down: nn.Sequential, blocks: Sequence[Block], channels: int) -> None:
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
            blocks = [Block(width, expansion, next(rates)) for _ in range(depth)]
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
