"""DeepLab-LargeFOV on an image pyramid, merged by attention over the scales."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from attnops.nn import ScaleAttention

from ._checks import check_classes
from ._losses import mean_cross_entropy
from ._model import SegmentationModel
from ._registry import register
from .backbones.choice import Pretrained, check_in_channels, load_backbone
from .backbones.vgg import VGG16, WIDTHS, large_field


class DeepLabAttention(SegmentationModel):
    """The scores of an image at several scales, weighted at every pixel by an attention head.

    One trunk and classifier serve all scales; `ScaleAttention` reads their fc7 features. Resizes
    are bilinear with aligned corners: of n pixels, scale s keeps floor((n - 1)·s) + 1.

    Source: Chen et al., Attention to Scale: Scale-aware Semantic Image Segmentation (CVPR 2016),
    sections 3 and 4, on DeepLab-LargeFOV.

    Args:
        num_classes: channels of the logits.
        scales: of the image, each in (0, 1], the largest first.
        dropout: rate after fc6, fc7 and inside the attention head.
        reduce: "attention"; "mean" or "max" merge without weights.
        source: which features the attention reads, "concat" of all scales or the "first" scale's.
        channels: of fc6 and fc7.
        hidden_channels: of the attention head.
        widths: channels of the five stages of VGG16.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: `[B, in_channels, H, W]` -> "out" `[B, num_classes, H, W]`, of the finest scale's
        scores before the last resize. Sides of 8k + 1 (321, 513) keep all grids aligned.

    Raises:
        ValueError: scales that are empty, not in order, or out of range.
    """

    align_corners = True
    classifiers = ("cls.*",)

    def __init__(
        self,
        num_classes: int = 21,
        scales: Sequence[float] = (1.0, 0.75, 0.5),
        dropout: float = 0.5,
        reduce: str = "attention",
        source: str = "concat",
        channels: int = 1024,
        hidden_channels: int = 512,
        widths: Sequence[int] = WIDTHS,
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        super().__init__()
        num_classes = check_classes(type(self).__name__, num_classes)
        self.in_channels = check_in_channels(type(self).__name__, in_channels)
        scales = tuple(float(scale) for scale in scales)
        in_range = all(0 < scale <= 1 for scale in scales)
        if not scales or not in_range or list(scales) != sorted(scales, reverse=True):
            raise ValueError(
                f"{type(self).__name__}: scales must be numbers in (0, 1], the largest first, got "
                f"{scales}"
            )
        self.scales = scales
        self.backbone = VGG16(widths, self.in_channels)
        self.field = large_field(self.backbone.channels, channels, dropout)
        self.cls = nn.Conv2d(channels, num_classes, 1)
        nn.init.normal_(self.cls.weight, std=0.01)
        nn.init.zeros_(self.cls.bias)
        self.attention = ScaleAttention(
            channels, len(scales), hidden_channels, dropout, source, reduce
        )
        load_backbone(self, pretrained, published="vgg16")

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        features = [self.field(self.backbone(_scaled(images, s))) for s in self.scales]
        scores = [self.cls(x) for x in features]
        merged = self.attention(features, scores)
        return {"out": merged, **{f"scale{i}": x for i, x in enumerate(scores)}}

    def published_loss(
        self, outputs: Mapping[str, Tensor], target: Tensor, **options: Any
    ) -> Tensor:
        """Cross-entropies of the merged scores and of every scale's, summed.

        Each is at the resolution of its scores, against the nearest labels.
        """
        names = ["out", *(f"scale{i}" for i in range(len(self.scales)))]
        maps = [self.small_map(outputs, name) for name in names]
        losses = [self._small_loss(scores, target, **options) for scores in maps]
        return torch.stack(losses).sum()

    def _small_loss(self, scores: Tensor, target: Tensor, **options: Any) -> Tensor:
        labels = subsample(target, scores.shape[2:])
        return mean_cross_entropy(scores, labels, self.ignore_index, align_corners=False, **options)


def _scaled(images: Tensor, scale: float) -> Tensor:
    if scale == 1:
        return images
    # Of whole numbers, which stay symbols where the sizes are symbols.
    over, under = Fraction(scale).limit_denominator(10**6).as_integer_ratio()
    size = [(side - 1) * over // under + 1 for side in images.shape[2:]]
    return interpolate(images, size, mode="bilinear", align_corners=True)


def subsample(target: Tensor, size: Sequence[int]) -> Tensor:
    """The labels `[B, h, w]` of target `[B, H, W]` nearest to a smaller grid with aligned corners.

    Where the grids coincide, every n-th label: `target[:, ::8, ::8]` of 321 pixels at size 41.
    """
    for dim, small in zip((1, 2), size, strict=True):
        side = target.shape[dim]
        steps = torch.arange(small, device=target.device)
        gaps = max(small - 1, 1)
        target = target.index_select(dim, (2 * steps * (side - 1) + gaps) // (2 * gaps))
    return target


register("deeplab_attention")(DeepLabAttention)
