"""GALD: global aggregation, then local distribution; both versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from attnops._checks import check_choice
from attnops.nn import (
    ASPP,
    CGNL,
    DynamicLocalDistribution,
    GALDBlock,
    LocalDistribution,
    NonLocal,
    PyramidPooling,
)
from attnops.nn.functional import conv_bn_relu
from attnops.nn.local_distribution import SMALLEST_SIDE as SMALLEST_MAP

from ._checks import check_classes
from ._losses import AUX_WEIGHT
from ._model import SegmentationModel
from ._variants import register_variants
from .backbones.choice import Pretrained, check_in_channels, load_backbone, make_backbone
from .backbones.resnet import dilated_resnets
from .backbones.timm_features import TimmFeatures
from .fcn import fcn_head

AGGREGATIONS = ("cgnl", "aspp", "psp", "nl")


class ResidualNonLocal(NonLocal):
    """x + the context of `NonLocal`, the embedded-Gaussian block with a projection each."""

    def __init__(self, channels: int, hidden_channels: int) -> None:
        super().__init__(channels, hidden_channels, share="none")

    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


class HeadV1(nn.Module):
    """Global aggregation and a gate from strided convolutions, beside the backbone's map.

    y = cls(ReLU(BN(conv3x3(cat[x, convb(block(conva(x)))])))), with conva and convb 3x3
    convolutions with BatchNorm and ReLU. The block is the released `GALDBlock` for "cgnl", whose
    residual counts twice, else the aggregation and `LocalDistribution` with eq. (2)'s residual;
    "aspp" and "psp" work on x itself, without conva and convb.

    Args:
        in_channels: channels of x.
        channels: of everything in between.
        num_classes: channels of the logits.
        ga: global aggregation, "cgnl", "aspp", "psp" or "nl".
    """

    def __init__(self, in_channels: int, channels: int, num_classes: int, ga: str) -> None:
        super().__init__()
        around = ga in ("cgnl", "nl")
        self.conva = conv_bn_relu(in_channels, channels, 3) if around else nn.Identity()
        if ga == "cgnl":
            self.block = GALDBlock(channels, channels // 2)
        else:
            aggregation = _aggregation(ga, in_channels, channels)
            self.block = nn.Sequential(aggregation, LocalDistribution(channels))
        self.convb = conv_bn_relu(channels, channels, 3) if around else nn.Identity()
        self.bottleneck = conv_bn_relu(in_channels + channels, channels, 3)
        self.cls = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        refined = self.convb(self.block(self.conva(x)))
        return self.cls(self.bottleneck(torch.cat([x, refined], dim=1)))


class HeadV2(nn.Module):
    """Global aggregation, distributed by attention over a dilated window.

    With Xl = reduce(x), a 1x1 convolution with BatchNorm and ReLU, and Xg the aggregation (of x for
    "aspp" and "psp", of Xl for "cgnl" and "nl"):
    y = cls(ReLU(BN(conv3x3(cat[LDv2(Xg, Xl), Xl])))).

    Args:
        in_channels: channels of x.
        channels: of Xl, Xg and the result of the distribution.
        num_classes: channels of the logits.
        ga: global aggregation, "aspp", "psp", "nl" or "cgnl".
        kernel_size: side of the window.
        dilation: distance of the neighbours in it.
        border: of the window, as in `DynamicLocalDistribution`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        num_classes: int,
        ga: str,
        kernel_size: int,
        dilation: int,
        border: str,
    ) -> None:
        super().__init__()
        self.on_input = ga in ("aspp", "psp")
        self.reduce = conv_bn_relu(in_channels, channels, 1)
        self.aggregation = _aggregation(ga, in_channels, channels)
        self.distribution = DynamicLocalDistribution(channels, kernel_size, dilation, border)
        self.bottleneck = conv_bn_relu(2 * channels, channels, 3)
        self.cls = nn.Conv2d(channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        local = self.reduce(x)
        aggregated = self.aggregation(x if self.on_input else local)
        refined = self.distribution(aggregated, local)
        return self.cls(self.bottleneck(torch.cat([refined, local], dim=1)))


def _aggregation(ga: str, in_channels: int, channels: int) -> nn.Module:
    if ga == "aspp":
        return ASPP(in_channels, channels // 2, channels)
    if ga == "psp":
        return PyramidPooling(in_channels, channels)
    if ga == "nl":
        return ResidualNonLocal(channels, channels // 2)
    return CGNL(channels, channels // 2)


class GALD(SegmentationModel):
    """What both versions share: the backbone, the auxiliary head on stage 3, and the loss.

    Args:
        backbone: "resnet50", "resnet101", any name of timm's that takes features_only, or a
            module with `channels` that returns four maps.
        num_classes: channels of the logits.
        dropout: rate of the auxiliary head's Dropout2d.
        channels: of the auxiliary head.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.
    """

    align_corners = True
    classifiers = ("head.cls.*", "aux.4.*")
    head: nn.Module

    def __init__(
        self,
        backbone: str | nn.Module,
        num_classes: int,
        dropout: float,
        channels: int,
        in_channels: int,
        pretrained: Pretrained,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        self.in_channels = check_in_channels(name, in_channels)
        ours = dilated_resnets(stem="deep", dilation="full", ceil_mode=True)
        self.backbone = make_backbone(name, backbone, ours, self.in_channels, pretrained)
        self.aux = fcn_head(self.backbone.channels[2], channels, num_classes, dropout)
        load_backbone(self, pretrained)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        *_, low, high = self.backbone(images)
        out = {"out": self.head(high)}
        if self.training:
            out["aux"] = self.aux(low)
        return out

    def published_loss(
        self, outputs: Mapping[str, Tensor], target: Tensor, **options: Any
    ) -> Tensor:
        """Cross-entropy with hard example mining + 0.4 that of the auxiliary head."""
        main = self.mined_cross_entropy(outputs, target, **options)
        if not self.has_map(outputs, "aux"):
            return main
        return main + AUX_WEIGHT * self.cross_entropy(outputs, target, "aux", **options)


class GALDv1(GALD):
    """GALD with a gate from strided convolutions, on a ResNet dilated in every block.

    Source: Li et al., Global Aggregation then Local Distribution in Fully Convolutional Networks
    (BMVC 2019), as released: compact generalized non-local block, residual counted twice.

    Args:
        num_classes: channels of the logits.
        backbone: "resnet50", "resnet101", any name of timm's that takes features_only, or a
            module with `channels` that returns four maps.
        ga: global aggregation: "cgnl" (released), "aspp", "psp" or "nl".
        dropout: rate of the auxiliary head's Dropout2d; the main head has none.
        channels: of the head.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: `[B, in_channels, H, W]`, both sides at least 111, so that the map, an eighth, has
        the 15 that the gate needs (`smallest_side` says how many with a backbone of timm's)
        -> "out" `[B, num_classes, H, W]`.

    Raises:
        ValueError: unknown option; in the forward, an image that is too small.
    """

    smallest_side = 111

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str | nn.Module = "resnet101",
        ga: str = "cgnl",
        dropout: float = 0.1,
        channels: int = 512,
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        name = type(self).__name__
        num_classes = check_classes(name, num_classes)
        check_choice(name, "ga", ga, AGGREGATIONS)
        super().__init__(backbone, num_classes, dropout, channels, in_channels, pretrained)
        if isinstance(self.backbone, TimmFeatures):
            self.smallest_side = _smallest_side(self.backbone, self.in_channels)
        self.head = HeadV1(self.backbone.channels[3], channels, num_classes, ga)


def _smallest_side(backbone: TimmFeatures, in_channels: int) -> int:
    """Of images whose last map the gate takes; most networks round a size up, some down."""
    stride = backbone.strides[3]
    side = (SMALLEST_MAP - 1) * stride + 1
    named = (*backbone.named_parameters(), *backbone.named_buffers())
    state = {name: torch.empty_like(value, device="meta") for name, value in named}
    images = torch.empty(1, in_channels, side, side, device="meta")
    try:
        with torch.no_grad():
            sides = functional_call(backbone, state, (images,))[3].shape[2:]
    except Exception:  # timm's networks raise all kinds for sizes that they do not take
        sides = (0,)
    return side if min(sides) >= SMALLEST_MAP else SMALLEST_MAP * stride


class GALDv2(GALD):
    """GALD with attention over a dilated window, on a ResNet dilated in every block.

    Source: Li et al., Global Aggregation then Local Distribution for Scene Parsing (TIP 2021),
    section III. No code was released; `DynamicLocalDistribution` says how its text is read.

    Args:
        num_classes: channels of the logits.
        backbone: "resnet50", "resnet101", any name of timm's that takes features_only, or a
            module with `channels` that returns four maps.
        ga: global aggregation: "aspp", "psp", "nl" or "cgnl".
        dropout: rate of the auxiliary head's Dropout2d.
        channels: of the head.
        kernel_size: odd side of the window.
        dilation: distance of the neighbours in it.
        border: "zero" or "mask", as in `attnops.local_attention`.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: `[B, in_channels, H, W]` -> "out" `[B, num_classes, H, W]`.
    """

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str | nn.Module = "resnet101",
        ga: str = "aspp",
        dropout: float = 0.1,
        channels: int = 512,
        kernel_size: int = 5,
        dilation: int = 6,
        border: str = "zero",
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        name = type(self).__name__
        num_classes = check_classes(name, num_classes)
        check_choice(name, "ga", ga, AGGREGATIONS)
        super().__init__(backbone, num_classes, dropout, channels, in_channels, pretrained)
        self.head = HeadV2(
            self.backbone.channels[3], channels, num_classes, ga, kernel_size, dilation, border
        )


register_variants(GALDv1, {"galdv1_r50": "resnet50", "galdv1_r101": "resnet101"})
register_variants(GALDv2, {"galdv2_r50": "resnet50", "galdv2_r101": "resnet101"})
