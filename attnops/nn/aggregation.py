"""Global aggregation by pooling and by dilation: PSP and ASPP, as GALD's code has them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from .._checks import check_shape, check_tensors, given_python_numbers
from ..pyramid_pool import checked_sizes, pyramid_pool
from .functional import as_matrix, conv_bn_relu, is_pointwise, pointwise, runs_as_built

DROPOUT = 0.1


class PyramidPooling(nn.Module):
    """Pyramid pooling module: poolings of four sizes, projected, resized, beside the input.

    Every level is a mean pooling (all levels in one pass over the map), a bias-free 1x1
    convolution and BatchNorm without ReLU, resized with aligned corners; the levels come first in
    the concatenation, then 3x3 convolution, BatchNorm, ReLU, Dropout2d.

    Source: Zhao et al., Pyramid Scene Parsing Network (CVPR 2017), section 3.2, in the form
    released with GALD.

    Args:
        in_channels: channels of the map.
        out_channels: channels of every level and of the result.
        sizes: grids of the levels.

    Shapes: `[B, in_channels, H, W]` -> `[B, out_channels, H, W]`.

    Example:
        >>> import torch
        >>> from attnops.nn import PyramidPooling
        >>> PyramidPooling(64, 16)(torch.randn(2, 64, 20, 24)).shape
        torch.Size([2, 16, 20, 24])
    """

    @given_python_numbers
    def __init__(
        self, in_channels: int, out_channels: int = 512, sizes: Sequence[int] = (1, 2, 3, 6)
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.sizes = tuple(checked_sizes("PyramidPooling", sizes))
        self.levels = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, bias=False), nn.BatchNorm2d(out_channels)
            )
            for _ in self.sizes
        )
        joined = in_channels + len(self.sizes) * out_channels
        self.bottleneck = conv_bn_relu(joined, out_channels, 3)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("PyramidPooling", x=x)
        check_shape("PyramidPooling", "x", x, ("B", self.in_channels, "H", "W"))
        pooled = pyramid_pool(x, self.sizes).split([n * n for n in self.sizes], dim=2)
        maps = [
            interpolate(
                level(anchors.unflatten(2, (n, n))),
                x.shape[2:],
                mode="bilinear",
                align_corners=True,
            )
            for n, level, anchors in zip(self.sizes, self.levels, pooled, strict=True)
        ]
        return self.dropout(self.bottleneck(torch.cat([*maps, x], dim=1)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling: the image's mean, a 1x1 and dilated 3x3 convolutions.

    The branches, each bias-free with BatchNorm and ReLU, are concatenated in this order, then 1x1
    convolution, BatchNorm, ReLU, Dropout2d. The image's branch is one vector a sample, so its
    share of that convolution is computed once a sample and added.

    Source: Chen et al., Rethinking Atrous Convolution for Semantic Image Segmentation (2017),
    section 3.3, in the form released with GALD.

    Args:
        in_channels: channels of the map.
        inner_channels: channels of every branch.
        out_channels: channels of the result.
        dilations: dilations of the 3x3 convolutions.

    Shapes: `[B, in_channels, H, W]` -> `[B, out_channels, H, W]`. In training the BatchNorm of
        the image's branch needs two samples.

    Example:
        >>> import torch
        >>> from attnops.nn import ASPP
        >>> ASPP(64, 8, 16)(torch.randn(2, 64, 20, 24)).shape
        torch.Size([2, 16, 20, 24])
    """

    @given_python_numbers
    def __init__(
        self,
        in_channels: int,
        inner_channels: int = 256,
        out_channels: int = 512,
        dilations: Sequence[int] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.image = conv_bn_relu(in_channels, inner_channels, 1)
        self.branches = nn.ModuleList([conv_bn_relu(in_channels, inner_channels, 1)])
        self.branches.extend(conv_bn_relu(in_channels, inner_channels, 3, d) for d in dilations)
        joined = inner_channels * (2 + len(dilations))
        self.bottleneck = conv_bn_relu(joined, out_channels, 1)
        self.dropout = nn.Dropout2d(DROPOUT)

    def forward(self, x: Tensor) -> Tensor:
        check_tensors("ASPP", x=x)
        check_shape("ASPP", "x", x, ("B", self.in_channels, "H", "W"))
        image = self.image(pyramid_pool(x, (1,)).unsqueeze(3))
        maps = [branch(x) for branch in self.branches]
        return self.dropout(self._join(image, maps))

    def _join(self, image: Tensor, maps: list[Tensor]) -> Tensor:
        """The bottleneck of cat[image, *maps], with the image's share computed once a sample."""
        bottleneck = self.bottleneck
        plain = runs_as_built(bottleneck, nn.Sequential) and len(bottleneck) > 0
        if not plain or not is_pointwise(bottleneck[0]):
            image = image.expand(-1, -1, *maps[0].shape[2:])
            return bottleneck(torch.cat([image, *maps], dim=1))
        conv, *rest = bottleneck
        of_image, of_maps = as_matrix(conv.weight).tensor_split([image.shape[1]], dim=1)
        out = pointwise(torch.cat(maps, dim=1), of_maps, None)
        out = out + pointwise(image, of_image, conv.bias)
        for module in rest:
            out = module(out)
        return out
