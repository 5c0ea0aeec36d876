"""SegNeXt's encoder block: attention by strip convolutions, and a convolutional feed-forward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from .._checks import check_shape, check_tensors, given_python_numbers
from .._choice import current_backend
from .._layout import statistics_dtype
from ..depthwise_gelu import depthwise_gelu
from ..feed_forward import feed_forward
from ._order import Ordered
from .functional import convolve, is_depthwise, is_pointwise, map_of_tokens
from .segnext import MSCA

LAYER_SCALE = 0.01


class ConvolutionalAttention(nn.Module):
    """1x1 convolution, GELU, MSCA, 1x1 convolution, and the input again.

    Args:
        channels: C of the map `[B, C, H, W]`.
        local_kernel: of the MSCA.
        strips: of the MSCA.
    """

    def __init__(
        self, channels: int, local_kernel: int = 5, strips: Sequence[int] = (7, 11, 21)
    ) -> None:
        super().__init__()
        self.project_in = nn.Conv2d(channels, channels, 1)
        self.gate = MSCA(channels, local_kernel, strips)
        self.project_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return convolve(self.project_out, self.gate(gelu(convolve(self.project_in, x)))) + x


class ConvolutionalFeedForward(nn.Module):
    """1x1 convolution to `hidden` channels, depthwise 3x3 convolution, GELU, 1x1 convolution back:
    `attnops.feed_forward` on CPUs, separate products around `attnops.depthwise_gelu` elsewhere.

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
        expand, depthwise, contract = self.expand, self.depthwise, self.contract
        if self._is_one_op(x):
            weights = expand.weight, depthwise.weight, contract.weight
            return feed_forward(x, *weights, expand.bias, depthwise.bias, contract.bias)
        hidden = convolve(expand, x)
        if is_depthwise(depthwise):
            hidden = depthwise_gelu(hidden, depthwise.weight, depthwise.bias)
        else:
            hidden = gelu(depthwise(hidden))
        return convolve(contract, hidden)

    def _is_one_op(self, x: Tensor) -> bool:
        """On CPUs. On GPUs the separate products are faster, by static estimates; the reference
        would compute everything again for its gradient.
        """
        return (
            x.device.type == "cpu"
            and is_depthwise(self.depthwise, 3, 3)
            and is_pointwise(self.expand)
            and is_pointwise(self.contract)
            and (torch.compiler.is_compiling() or current_backend() != "reference")
        )


class MSCABlock(Ordered):
    """x = x + s1·Attention(BN(x)), then x = x + s2·FeedForward(BN(x)).

    Attention is 1x1 convolution, GELU, `MSCA`, 1x1 convolution, plus its own input: so the first
    BatchNorm's output is added a second time, scaled. FeedForward is a 1x1 convolution to
    `expansion` times the channels, a depthwise 3x3 convolution, GELU and a 1x1 convolution back
    (`attnops.feed_forward`). s1 and s2 are vectors over channels. The branches are dropped
    independently of each other, per sample, and those that are kept are divided by the probability
    to be kept.

    Source: Guo et al., SegNeXt (NeurIPS 2022), section 3.1, figure 2; details that the paper leaves
    open as in the released code.

    Args:
        channels: C of the map.
        expansion: hidden channels of the feed-forward network over C.
        drop_path: probability that a sample loses a branch in training.
        local_kernel: odd side of the MSCA's square convolution.
        strips: odd lengths of its pairs of strip convolutions.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`; or, given the height and the width of the map, tokens
        `[B, H·W, C]` -> `[B, H·W, C]` as the released code has them.

    Raises:
        ValueError: an even kernel; an input of another shape.

    Example:
        >>> import torch
        >>> from attnops.nn import MSCABlock
        >>> block = MSCABlock(16)
        >>> block(torch.randn(2, 16, 24, 32)).shape, block(torch.randn(2, 768, 16), 24, 32).shape
        (torch.Size([2, 16, 24, 32]), torch.Size([2, 768, 16]))
    """

    @given_python_numbers
    def __init__(
        self,
        channels: int,
        expansion: float = 4.0,
        drop_path: float = 0.0,
        local_kernel: int = 5,
        strips: Sequence[int] = (7, 11, 21),
    ) -> None:
        super().__init__()
        self.channels, self.drop_path = channels, drop_path
        self.norm1 = nn.BatchNorm2d(channels)
        self.attention = ConvolutionalAttention(channels, local_kernel, strips)
        self.scale1 = nn.Parameter(torch.full((channels,), LAYER_SCALE))
        self.norm2 = nn.BatchNorm2d(channels)
        self.feed_forward = ConvolutionalFeedForward(channels, int(channels * expansion))
        self.scale2 = nn.Parameter(torch.full((channels,), LAYER_SCALE))

    def forward(self, x: Tensor, height: int | None = None, width: int | None = None) -> Tensor:
        if height is None:
            return self._map(x)
        check_tensors("MSCABlock", x=x)
        check_shape("MSCABlock", "x", x, ("B", height * width, self.channels))
        return self._map(map_of_tokens(x, height, width)).flatten(2).mT  # views, both ways

    def _map(self, x: Tensor) -> Tensor:
        x = torch.addcmul(x, self._factor(self.scale1, x), self.attention(self.norm1(x)))
        return torch.addcmul(x, self._factor(self.scale2, x), self.feed_forward(self.norm2(x)))

    def _factor(self, scale: Tensor, x: Tensor) -> Tensor:
        """The branch's factor, `[C, 1, 1]`, or `[B, C, 1, 1]` where samples lose it."""
        factor = scale[:, None, None]
        if not self.training or self.drop_path == 0.0:
            return factor
        kept = 1.0 - self.drop_path
        # Not in half precision, which would round the rate. What mmcv's DropPath drops, from the
        # same state of the generator, is dropped here.
        shape = (x.shape[0], 1, 1, 1)
        draws = (torch.rand(shape, dtype=statistics_dtype(x), device=x.device) + kept).floor()
        return factor * (draws.to(scale.dtype) / kept)
