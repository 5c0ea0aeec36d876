"""One small network of every family, for what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from model_checks import shake, tiny_resnet
from torch import nn

from attnops.models import ANN, DeepLabAttention, GALDv1, GALDv2, SANet, SegmentationModel, SegNeXt

CLASSES = 5
SIZE = (113, 121)  # what every family takes


def _deeplab(classes: int) -> DeepLabAttention:
    model = DeepLabAttention(classes, widths=(4, 6, 8, 10, 12), channels=16, hidden_channels=8)
    nn.init.normal_(model.cls.weight, std=1.0)
    return model


FAMILIES: dict[str, Callable[[int], SegmentationModel]] = {
    "segnext": lambda k: SegNeXt("t", k, seed=3),
    "ann": lambda k: ANN(k, tiny_resnet(), channels=24, key_channels=8),
    "ann_mmseg": lambda k: ANN(
        k, tiny_resnet("v1c", ceil_mode=False), "mmseg", channels=24, key_channels=8
    ),
    "galdv1": lambda k: GALDv1(k, tiny_resnet("deep", "full"), channels=32),
    "galdv2": lambda k: GALDv2(k, tiny_resnet("deep", "full"), channels=32),
    "sanet": lambda k: SANet(k, tiny_resnet("plain", ceil_mode=False)),
    "deeplab": _deeplab,
}


def tiny_network(family: str, seed: int = 0, classes: int = CLASSES) -> SegmentationModel:
    """A network in training mode; the same weights for the same seed."""
    torch.manual_seed(seed)
    return shake(FAMILIES[family](classes))
