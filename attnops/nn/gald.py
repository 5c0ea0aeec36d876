"""Compact generalized non-local block and the block of GALD around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, group_norm, interpolate

from .._checks import check_shape, check_tensors, given_python_numbers
from ..group_attention import group_attention
from ._order import Ordered
from .functional import (
    as_matrix,
    convolve,
    is_pointwise,
    pointwise,
    runs_as_built,
    without_autocast,
)
from .local_distribution import LocalDistribution, strided_depthwise

LARGE_HALF = 1024.0  # leaves a factor of 64 for the sums of a convolution


class CGNL(Ordered):
    """Compact generalized non-local block: one global statistic a group of channels.

    y = x + GroupNorm(z(a·t(x))) with a = <p(x), g(x)> over the channels of a group and all
    positions; t, p, g bias-free 1x1 convolutions C -> P, z a grouped one P -> C.

    The sums are unscaled and grow with the map, so from them to the GroupNorm float16 is computed
    in float32. Because of the GroupNorm the magnitude of a reaches the output only through the
    norm's epsilon.

    Source: Yue et al., Compact Generalized Non-local Network (NeurIPS 2018), as released with
    Li et al., GALD (BMVC 2019), section 3.2.

    Args:
        channels: C of the map.
        planes: P, channels of the projections.
        groups: groups of channels, a divisor of C and P.
        use_scale: divide a by the square root of the number of its summands.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`.

    Raises:
        ValueError: `groups` does not divide the channels; an input of another shape.

    Example:
        >>> import torch
        >>> from attnops.nn import CGNL
        >>> CGNL(32, planes=16)(torch.randn(2, 32, 20, 24)).shape
        torch.Size([2, 32, 20, 24])
    """

    @given_python_numbers
    def __init__(
        self, channels: int, planes: int, groups: int = 8, use_scale: bool = False
    ) -> None:
        super().__init__()
        if groups < 1 or channels % groups or planes % groups:
            raise ValueError(
                f"CGNL: groups must divide channels and planes, got groups={groups}, "
                f"channels={channels}, planes={planes}"
            )
        self.channels, self.groups, self.use_scale = channels, groups, use_scale
        self.t = nn.Conv2d(channels, planes, 1, bias=False)
        self.p = nn.Conv2d(channels, planes, 1, bias=False)
        self.g = nn.Conv2d(channels, planes, 1, bias=False)
        self.z = nn.Conv2d(planes, channels, 1, groups=groups, bias=False)
        self.gn = nn.GroupNorm(groups, channels)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("CGNL", x=x)
        check_shape("CGNL", "x", x, ("B", self.channels, "H", "W"))
        theta, phi, g = convolve(self.t, x), self._scaled_phi(x), convolve(self.g, x)
        if theta.dtype != torch.float16:
            return x + self.gn(self.z(group_attention(theta, phi, g, self.groups)))
        z, gn = self.z, self.gn
        with without_autocast(x):
            wide = group_attention(theta.float(), phi.float(), g.float(), self.groups)
            if is_pointwise(z, self.groups) and runs_as_built(gn, nn.GroupNorm):
                wide = conv2d(wide, z.weight.float(), _float(z.bias), groups=self.groups)
                affine = _float(gn.weight), _float(gn.bias)
                return x + group_norm(wide, gn.num_groups, *affine, gn.eps).to(x.dtype)
            if isinstance(gn, nn.GroupNorm):
                wide = _within_half(wide)
        return x + gn(z(wide.to(theta.dtype))).to(x.dtype)

    def _scaled_phi(self, x: Tensor) -> Tensor:
        """p(x), divided by the root of the number of summands with `use_scale`."""
        if not self.use_scale:
            return convolve(self.p, x)
        positions = x.shape[2] * x.shape[3]
        if is_pointwise(self.p):
            weight, bias = as_matrix(self.p.weight), self.p.bias
            scale = (weight.shape[0] // self.groups * positions) ** -0.5
            return pointwise(x, weight * scale, None if bias is None else bias * scale)
        phi = self.p(x)
        return phi * (phi.shape[1] // self.groups * positions) ** -0.5


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()


def _within_half(x: Tensor) -> Tensor:
    """Samples of `x` with values that a convolution would carry beyond float16, divided by one
    number each, which a GroupNorm after the convolution takes out again.
    """
    return x / (x.detach().abs().amax(dim=(1, 2, 3), keepdim=True) / LARGE_HALF).clamp(min=1.0)


class GALDBlock(Ordered):
    """Global aggregation on a halved map, then local distribution at full size.

    Xg = resize(CGNL(down(x))), bilinear with aligned corners; y = (residual_weight + M)·Xg with
    the gate M of `LocalDistribution`. The released code adds Xg once more than eq. (2) of the
    paper says: 2 reproduces it, 1 is the equation.

    Source: Li et al., Global Aggregation then Local Distribution in Fully Convolutional Networks
    (BMVC 2019), figure 2, eq. (2).

    Args:
        channels: C of the map.
        planes: channels of the projections in the CGNL.
        residual_weight: weight of Xg beside the gated one.

    Shapes: `[B, C, H, W]` -> `[B, C, H, W]`, both sides at least 15.

    Example:
        >>> import torch
        >>> from attnops.nn import GALDBlock
        >>> GALDBlock(32, planes=16)(torch.randn(2, 32, 33, 40)).shape
        torch.Size([2, 32, 33, 40])
    """

    @given_python_numbers
    def __init__(
        self, channels: int = 512, planes: int = 256, residual_weight: float = 2.0
    ) -> None:
        super().__init__()
        self.channels = channels
        self.down = strided_depthwise(channels)
        self.aggregation = CGNL(channels, planes)
        self.distribution = LocalDistribution(channels, residual_weight)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("GALDBlock", x=x)
        check_shape("GALDBlock", "x", x, ("B", self.channels, "H", "W"))
        small = self.aggregation(self.down(x))
        aggregated = interpolate(small, x.shape[2:], mode="bilinear", align_corners=True)
        return self.distribution(aggregated)
