"""SANet: squeeze-and-attention heads on all stages of a backbone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate

from attnops._checks import check_choice
from attnops.nn import SqueezeAttention

from ._checks import check_classes
from ._model import SegmentationModel
from ._variants import register_variants
from .backbones.choice import Pretrained, check_in_channels, load_backbone, make_backbone
from .backbones.resnet import dilated_resnets

CATEGORY_WEIGHT, DENSE_WEIGHT = 0.2, 0.8
DENSE_LOSSES = {"prediction": "out", "dense": "dense"}  # option -> the map of the dense loss


class SANet(SegmentationModel):
    """A dense prediction, regularised by squeeze-and-attention heads on four stages.

    With S1 .. S4 the heads' logits and D a 1x1 convolution of stage 4: "out" = D + S4, and the
    "mask" = a 1x1 convolution of cat[S1, .., S4], resized to the largest of them.

    Source: Zhong et al., Squeeze-and-Attention Networks for Semantic Segmentation (CVPR 2020),
    section 3.3, figure 3. No code was released; where the text leaves a choice, the defaults are
    those that meet the paper's table 6 (see `SqueezeAttention`).

    Args:
        num_classes: channels of the logits.
        backbone: "resnet50", "resnet101", any name of timm's that takes features_only, or a
            module with `channels` that returns four maps.
        groups: of the heads' first convolutions.
        reduction: the heads are C / reduction wide inside.
        pool: "max" or "average" of the heads.
        pool_size: side of that pooling.
        activation: of the heads' attention.
        align_corners: of all resizes.
        squeeze_channels: hidden width of a squeeze-and-excitation gate on the heads; None: none.
        dense_loss: what the dense loss is of: "prediction", D + S4, as section 3.3 calls it the
            regularised dense prediction; or "dense", D alone, as eq. (9) can also be read. Then no
            loss says which channel of S4 is which class, and D + S4 predicts nothing.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: `[B, in_channels, H, W]` -> "out" `[B, num_classes, H, W]`.
    """

    classifiers = (
        "heads.*.main.3.*",
        "heads.*.attention.3.*",
        "heads.*.squeeze.**",
        "mask.*",
        "dense.*",
    )

    def __init__(
        self,
        num_classes: int = 21,
        backbone: str | nn.Module = "resnet101",
        groups: int = 2,
        reduction: int = 4,
        pool: str = "max",
        pool_size: int = 8,
        activation: str = "relu",
        align_corners: bool = False,
        squeeze_channels: int | None = None,
        dense_loss: str = "prediction",
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        num_classes = check_classes(name, num_classes)
        check_choice(name, "dense_loss", dense_loss, tuple(DENSE_LOSSES))
        self.dense_loss = dense_loss
        self.in_channels = check_in_channels(name, in_channels)
        self.align_corners = align_corners
        self.backbone = make_backbone(
            name, backbone, dilated_resnets(), self.in_channels, pretrained
        )
        self.heads = nn.ModuleList(
            SqueezeAttention(
                channels,
                num_classes,
                reduction,
                groups,
                pool,
                pool_size,
                activation,
                align_corners=align_corners,
                squeeze_channels=squeeze_channels,
            )
            for channels in self.backbone.channels
        )
        self.mask = nn.Conv2d(len(self.heads) * num_classes, num_classes, 1)
        self.dense = nn.Conv2d(self.backbone.channels[-1], num_classes, 1)
        load_backbone(self, pretrained, published=backbone if isinstance(backbone, str) else None)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        maps = self.backbone(images)
        squeezed = [head(x) for head, x in zip(self.heads, maps, strict=True)]
        dense = self.dense(maps[-1])
        size = squeezed[0].shape[2:]
        resized = [
            x
            if x.shape[2:] == size
            else interpolate(x, size, mode="bilinear", align_corners=self.align_corners)
            for x in squeezed
        ]
        mask = self.mask(torch.cat(resized, dim=1))
        return {"out": dense + squeezed[-1], "mask": mask, "dense": dense}

    def published_loss(
        self, outputs: Mapping[str, Tensor], target: Tensor, **options: Any
    ) -> Tensor:
        """Cross-entropy of the mask + 0.2 binary cross-entropy of which classes are in the image +
        0.8 cross-entropy of the dense prediction (eq. (6) to (9); see `dense_loss`).

        Which classes are there is read from the dense logits' mean over positions; an image without
        a labelled pixel does not count.
        """
        means = self.small_map(outputs, "dense").mean(dim=(2, 3))
        return (
            self.cross_entropy(outputs, target, "mask", **options)
            + CATEGORY_WEIGHT * category_loss(means, target, self.ignore_index)
            + DENSE_WEIGHT
            * self.cross_entropy(outputs, target, DENSE_LOSSES[self.dense_loss], **options)
        )


def category_loss(logits: Tensor, target: Tensor, ignore_index: int) -> Tensor:
    """Mean binary cross-entropy of logits `[B, K]` for classes in target `[B, H, W]`.

    Over the samples that have a labelled pixel; 0 if there are none.
    """
    present = presence(target, logits, ignore_index)
    losses = binary_cross_entropy_with_logits(logits, present, reduction="none").mean(dim=1)
    labelled = (target != ignore_index).flatten(1).any(dim=1)
    return torch.where(labelled, losses, 0).sum() / labelled.sum().clamp(min=1)


def presence(target: Tensor, like: Tensor, ignore_index: int) -> Tensor:
    """1 for classes that occur in a sample of target `[B, H, W]`, else 0: `[B, K]` as `like`."""
    classes = like.shape[1]
    labels = target.flatten(1).long()
    labels = labels.masked_fill(
        labels == ignore_index, classes
    )  # a column of its own, dropped below
    found = like.new_zeros(like.shape[0], classes + 1)
    return found.scatter_(1, labels, 1.0)[:, :classes]


register_variants(
    SANet,
    {
        "sanet_r50": "resnet50",
        "sanet_r101": "resnet101",
        "sanet_effnetb7": "tf_efficientnet_b7",
    },
)
