"""Local distribution: fixed by strided convolutions (LDv1) and attentive (LDv2)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ..local_attention import BORDERS, checked_window, local_attention
from ..reference.local_attention import local_scores
from ..upsample_gate import upsample_gate
from ._order import Ordered
from .functional import convolve

SMALLEST_SIDE = 15  # three unpadded strided convolutions: 15 -> 7 -> 3 -> 1


def strided_depthwise(channels: int) -> nn.Sequential:
    """Depthwise 3x3 convolution of stride 2 without padding, BatchNorm, ReLU: the step of GALD."""
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride=2, groups=channels),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
    )


class LocalDistribution(Ordered):
    """LDv1: a gate from a map eight times smaller, resized and applied in one pass.

    M = sigmoid(resize(s(s(s(x))))), with s a strided depthwise convolution, BatchNorm and ReLU and
    the resize bilinear with aligned corners; y = (residual_weight + M)·x. As the logits are never
    negative, M is at least 1/2.

    Source: Li et al., Global Aggregation then Local Distribution in Fully Convolutional Networks
    (BMVC 2019), section 3.3, eq. (2).

    Args:
        channels: C of the map.
        residual_weight: weight of the input beside the gated one.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`, both sides at least 15.

    Raises:
        ValueError: a map smaller than 15 on a side.

    Example:
        >>> import torch
        >>> from attnops.nn import LocalDistribution
        >>> LocalDistribution(16)(torch.randn(2, 16, 33, 40)).shape
        torch.Size([2, 16, 33, 40])
    """

    @given_python_numbers
    def __init__(self, channels: int, residual_weight: float = 1.0) -> None:
        super().__init__()
        self.channels = channels
        self.residual_weight = residual_weight
        self.gate = nn.Sequential(*(strided_depthwise(channels) for _ in range(3)))

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("LocalDistribution", x=x)
        check_shape("LocalDistribution", "x", x, ("B", self.channels, "H", "W"))
        height, width = x.shape[2:]
        if height < SMALLEST_SIDE or width < SMALLEST_SIDE:
            raise ValueError(
                f"LocalDistribution: the map must be at least {SMALLEST_SIDE}x{SMALLEST_SIDE}, "
                f"because its gate is three times halved without padding; got {height}x{width}"
            )
        return upsample_gate(self.gate(x), x, input_weight=self.residual_weight, align_corners=True)


class DynamicLocalDistribution(nn.Module):
    """LDv2: every position gathers global features from a dilated window, by attention.

    With x = cat[global, local], query, key and value are bias-free 1x1 convolutions of x, and the
    result is `attnops.local_attention` of them with scale 1. The result is meant to be
    concatenated with the local features before the last convolution of a head.

    Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
    section III, eq. (6) and (7). The authors released no code: padded neighbours stay in the
    softmax with score 0 (zero padding, as the text says), widths are those of the features, and
    the default dilation is that of the paper's best entry (table II b; its text prefers 3).

    Args:
        channels: C of each of the two maps and of the result.
        kernel_size: odd side, or sides, of the window.
        dilation: distance of neighbours.
        border: "zero", or "mask" to leave neighbours outside the map out of the softmax.

    Shapes: two maps `[B, C, H, W]` -> `[B, C, H, W]`.

    Raises:
        TypeError, ValueError: options as in `attnops.local_attention`; maps of other shapes.

    Example:
        >>> import torch
        >>> from attnops.nn import DynamicLocalDistribution
        >>> maps = torch.randn(2, 2, 16, 20, 24)
        >>> DynamicLocalDistribution(16, dilation=2)(*maps).shape
        torch.Size([2, 16, 20, 24])
    """

    @given_python_numbers
    def __init__(
        self,
        channels: int = 512,
        kernel_size: int | tuple[int, int] = 5,
        dilation: int | tuple[int, int] = 6,
        border: str = "zero",
    ) -> None:
        super().__init__()
        name = type(self).__name__
        checked_window(name, kernel_size, dilation)
        check_choice(name, "border", border, BORDERS)
        self.channels = channels
        self.kernel_size, self.dilation, self.border = kernel_size, dilation, border
        self.query = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.key = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.value = nn.Conv2d(2 * channels, channels, 1, bias=False)

    def forward(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        x = self._concatenate(global_features, local_features)
        query, key, value = (convolve(conv, x) for conv in (self.query, self.key, self.value))
        return local_attention(
            query, key, value, self.kernel_size, self.dilation, border=self.border
        )

    def attention(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        """Affinities `[B, kh*kw, H, W]` of every position to its neighbours, in row-major order.

        For pictures: written out in plain PyTorch, kh·kw maps. They sum to 1 with the share that
        goes to padding.
        """
        x = self._concatenate(global_features, local_features)
        query, key = convolve(self.query, x), convolve(self.key, x)
        window = (self.kernel_size, self.dilation, 1.0, self.border)
        return local_scores(query, key, *window).softmax(dim=1)

    def _concatenate(self, global_features: Tensor, local_features: Tensor) -> Tensor:
        name = type(self).__name__
        maps = {"global_features": global_features, "local_features": local_features}
        check_tensors(name, **maps)
        check_shape(name, "global_features", global_features, ("B", self.channels, "H", "W"))
        check_shape(name, "local_features", local_features, global_features.shape)
        return torch.cat([global_features, local_features], dim=1)
