"""VGG16 with a large field of view, the trunk of DeepLab."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .pooling import MaxPool3x3

CONVOLUTIONS = (2, 2, 3, 3, 3)  # of the five stages
STRIDES = (2, 2, 2, 1, 1)  # of their max poolings
DILATIONS = (1, 1, 1, 1, 2)
WIDTHS = (64, 128, 256, 512, 512)
FIELD_DILATION = 12


class VGG16(nn.Module):
    """The convolutions of VGG16 at output stride 8, the last three with dilation 2.

    All poolings are 3x3 with padding 1. The max poolings round up, as in Caffe (no difference for
    sides 8k + 1), the last two have stride 1; a mean pooling of stride 1 that counts its padding
    follows. timm's VGG has other poolings and no dilation. Convolutions have the indices that they
    have in VGG16 without BatchNorm in torchvision and timm: 0, 2, 5, 7, 10, 12, 14, 17, ..., 28.

    Source: Chen et al., Semantic Image Segmentation with Deep Convolutional Nets and Fully
    Connected CRFs (ICLR 2015), section 3, as released in DeepLab-LargeFOV.

    Args:
        widths: channels of the five stages.
        in_channels: of the images.

    Attributes:
        channels: of the result.

    Shapes: `[B, in_channels, H, W]` -> `[B, channels, h, w]` with h = (H - 1) / 8 + 1, rounded up.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, in_channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        stages = zip(CONVOLUTIONS, STRIDES, DILATIONS, widths, strict=True)
        for convolutions, stride, dilation, width in stages:
            for _ in range(convolutions):
                layers += _convolution(before, width, dilation)
                before = width
            layers.append(MaxPool3x3(stride, ceil_mode=True))
        layers.append(nn.AvgPool2d(3, 1, padding=1))
        self.features = nn.Sequential(*layers)
        self.channels = before

    def forward(self, x: Tensor) -> Tensor:
        return self.features(x)


def large_field(in_channels: int, channels: int, dropout: float) -> nn.Sequential:
    """fc6, a 3x3 convolution of dilation 12, and fc7, 1x1, each with ReLU and Dropout."""
    return nn.Sequential(
        *_convolution(in_channels, channels, FIELD_DILATION),
        nn.Dropout(dropout),
        nn.Conv2d(channels, channels, 1),
        nn.ReLU(),
        nn.Dropout(dropout),
    )


def _convolution(in_channels: int, out_channels: int, dilation: int) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=dilation, dilation=dilation)
    return [conv, nn.ReLU()]
