"""The convolutional head that the published networks train beside the main one."""

from __future__ import annotations

from torch import nn


def fcn_head(
    in_channels: int, inner_channels: int, num_classes: int, dropout: float, bias: bool = True
) -> nn.Sequential:
    """3x3 convolution, BatchNorm, ReLU, Dropout2d and the 1x1 convolution to the classes.

    Args:
        in_channels: channels of the map.
        inner_channels: channels between the convolutions.
        num_classes: channels of the logits.
        dropout: rate of the Dropout2d.
        bias: whether the 3x3 convolution has one.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, inner_channels, 3, padding=1, bias=bias),
        nn.BatchNorm2d(inner_channels),
        nn.ReLU(),
        nn.Dropout2d(dropout),
        nn.Conv2d(inner_channels, num_classes, 1),
    )
