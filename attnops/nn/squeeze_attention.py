"""The squeeze-and-attention module of SANet."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, max_pool2d, pad

from .._checks import check_choice, check_shape, check_tensors, given_python_numbers
from ..upsample_gate import ACTIVATIONS, upsample_gate


class SqueezeAttention(nn.Module):
    """Convolutions gated by those of a pooled map, for pixel groups of a class.

    y = A·R + A with R = main(x) and A = resize(activation(attention(pool(x)))); both branches are
    a grouped 3x3 convolution with BatchNorm and ReLU, then a convolution to the outputs. Gate,
    product and sum are one op.

    Source: Zhong et al., Squeeze-and-Attention Networks for Semantic Segmentation (CVPR 2020),
    section 3, eq. (2) and (3). No code was released; where text and figures leave a choice the
    defaults are those that meet the paper's parameter table.

    Args:
        in_channels: C of the map.
        out_channels: O of the result, in the published network the classes.
        reduction: both branches are C / reduction wide inside.
        groups: of the first convolutions.
        pool: "max" (section 3.3) or "average" (eq. (5)).
        pool_size: side and stride of the pooling; borders that it does not fill are pooled too.
        activation: "relu", "sigmoid" or "identity" of the attention, before it is resized.
        out_kernel: side of the second convolutions, 3 or 1 (odd).
        align_corners: of the resize.
        squeeze_channels: hidden width of a squeeze-and-excitation gate on the result; None: none.

    Shapes: `[B, C, H, W]` -> `[B, O, H, W]`.

    Raises:
        ValueError: unknown option, or widths that `reduction` and `groups` do not divide.

    Example:
        >>> import torch
        >>> from attnops.nn import SqueezeAttention
        >>> SqueezeAttention(64, 21)(torch.randn(2, 64, 32, 40)).shape
        torch.Size([2, 21, 32, 40])
    """

    @given_python_numbers
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        reduction: int = 4,
        groups: int = 2,
        pool: str = "max",
        pool_size: int = 8,
        activation: str = "relu",
        out_kernel: int = 3,
        align_corners: bool = False,
        squeeze_channels: int | None = None,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_choice(name, "pool", pool, ("max", "average"))
        check_choice(name, "activation", activation, ACTIVATIONS)
        if in_channels % reduction or in_channels % groups or in_channels // reduction % groups:
            raise ValueError(
                f"{name}: reduction must divide in_channels, and groups both in_channels and "
                f"in_channels / reduction; got {in_channels}, {reduction} and {groups}"
            )
        if out_kernel % 2 == 0 or pool_size < 1:
            raise ValueError(
                f"{name}: out_kernel must be odd and pool_size positive, got {out_kernel} and "
                f"{pool_size}"
            )
        self.in_channels, self.pool, self.pool_size = in_channels, pool, pool_size
        self.activation, self.align_corners = activation, align_corners
        inner = in_channels // reduction

        def branch() -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(in_channels, inner, 3, padding=1, groups=groups, bias=False),
                nn.BatchNorm2d(inner),
                nn.ReLU(),
                nn.Conv2d(inner, out_channels, out_kernel, padding=out_kernel // 2),
            )

        self.main, self.attention = branch(), branch()
        self.squeeze = None
        if squeeze_channels is not None:
            self.squeeze = nn.Sequential(
                nn.AdaptiveAvgPool2d(1),
                nn.Conv2d(out_channels, squeeze_channels, 1),
                nn.ReLU(),
                nn.Conv2d(squeeze_channels, out_channels, 1),
                nn.Sigmoid(),
            )

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("SqueezeAttention", x=x)
        check_shape("SqueezeAttention", "x", x, ("B", self.in_channels, "H", "W"))
        out = upsample_gate(
            self.attention(self._pooled(x)),
            self.main(x),
            self.activation,
            activation_first=True,
            residual="gate",
            align_corners=self.align_corners,
        )
        return out if self.squeeze is None else out * self.squeeze(out)

    def _pooled(self, x: Tensor) -> Tensor:
        """The map, pooled; for symbolic sizes in a form that does not ask whether windows fit."""
        side = self.pool_size
        if all(isinstance(length, int) for length in x.shape[2:]):
            pool = max_pool2d if self.pool == "max" else avg_pool2d
            return pool(x, side, ceil_mode=True)
        if self.pool == "max":
            return _windows(x, side, -torch.inf).amax(dim=(3, 5))
        inside = _windows(torch.ones_like(x[:1, :1]), side, 0.0)
        return _windows(x, side, 0.0).sum(dim=(3, 5)) / inside.sum(dim=(3, 5))


def _windows(x: Tensor, side: int, border: float) -> Tensor:
    """The windows `[B, C, rows, side, columns, side]` of a map that `border` fills up."""
    rows, columns = ((length + side - 1) // side for length in x.shape[2:])
    height, width = x.shape[2:]
    filled = pad(x, (0, columns * side - width, 0, rows * side - height), value=border)
    return filled.reshape(*x.shape[:2], rows, side, columns, side)
