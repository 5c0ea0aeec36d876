"""ANN: asymmetric non-local networks, as released and as mmsegmentation has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

from attnops._checks import check_choice
from attnops.nn import AFNB, APNB

from ._checks import check_classes
from ._losses import AUX_WEIGHT
from ._model import SegmentationModel
from ._variants import register_variants
from .backbones.choice import Pretrained, check_in_channels, load_backbone, make_backbone
from .backbones.resnet import dilated_resnets
from .fcn import fcn_head


class Form(NamedTuple):
    """What the two published forms of the network differ in."""

    stem: str
    ceil_mode: bool
    bias: bool  # of convolutions before a BatchNorm
    aux_channels: int
    dropout: float
    block_dropout: bool  # the dropout is in the blocks and `aux`, else around the 3x3 convolution
    align_corners: bool
    mining: bool


FORMS = {
    "released": Form("deep", True, True, 512, 0.05, True, True, True),
    "mmseg": Form("v1c", False, False, 256, 0.1, False, False, False),
}


class ANN(SegmentationModel):
    """Stage 4 attends to anchors of stage 3, then to its own, on a dilated ResNet.

    y = cls(APNB(ReLU(BN(conv3x3(AFNB(stage 3, stage 4)))))); the auxiliary head is on stage 3.

    Source: Zhu et al., Asymmetric Non-local Neural Networks for Semantic Segmentation (ICCV 2019),
    section 3.4, figure 3.

    Args:
        num_classes: channels of the logits.
        backbone: "resnet50", "resnet101", any name of timm's that takes features_only, or a
            module with `channels` that returns four maps.
        form: "released": the authors' code: stem of 64, 64 and 128 channels, pooling that rounds
            up, Dropout2d in the blocks, aligned corners, hard example mining in the loss.
            "mmseg": stem of 32, 32 and 64 channels, no biases before a BatchNorm, auxiliary
            head of 256 channels, Dropout2d around the 3x3 convolution, plain cross-entropy.
        dropout: rate of every Dropout2d; None: that of the form (0.05, mmseg 0.1).
        align_corners: of the resizes; None: that of the form (mmseg uses True for crops of 769).
        channels: of the map that the APNB refines.
        key_channels: of queries, keys and values.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: `[B, in_channels, H, W]` -> "out" `[B, num_classes, H, W]`.
    """

    classifiers = ("cls.*", "aux.4.*")

    def __init__(
        self,
        num_classes: int = 19,
        backbone: str | nn.Module = "resnet101",
        form: str = "released",
        dropout: float | None = None,
        align_corners: bool | None = None,
        channels: int = 512,
        key_channels: int = 256,
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        super().__init__()
        name = type(self).__name__
        num_classes = check_classes(name, num_classes)
        check_choice(name, "form", form, tuple(FORMS))
        self.form = form
        chosen = FORMS[form]
        rate = chosen.dropout if dropout is None else dropout
        in_blocks, around = (rate, 0.0) if chosen.block_dropout else (0.0, rate)
        self.align_corners = chosen.align_corners if align_corners is None else align_corners
        self.in_channels = check_in_channels(name, in_channels)
        self.backbone = make_backbone(
            name,
            backbone,
            dilated_resnets(stem=chosen.stem, ceil_mode=chosen.ceil_mode),
            self.in_channels,
            pretrained,
        )
        low, high = self.backbone.channels[2:]
        self.fusion = AFNB(low, high, key_channels, key_channels, dropout=in_blocks)
        self.context = nn.Sequential(
            nn.Conv2d(high, channels, 3, padding=1, bias=chosen.bias),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            APNB(channels, key_channels, key_channels, dropout=in_blocks),
        )
        self.dropout = nn.Dropout2d(around)
        self.cls = nn.Conv2d(channels, num_classes, 1)
        self.aux = fcn_head(low, chosen.aux_channels, num_classes, rate, chosen.bias)
        if not chosen.bias:
            _drop_biases(self.fusion)
            _drop_biases(self.context[-1])
        load_backbone(self, pretrained)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        *_, low, high = self.backbone(images)
        context = self.context(self.dropout(self.fusion(low, high)))
        out = {"out": self.cls(self.dropout(context))}
        if self.training:
            out["aux"] = self.aux(low)
        return out

    def published_loss(
        self, outputs: Mapping[str, Tensor], target: Tensor, **options: Any
    ) -> Tensor:
        """Cross-entropy with hard example mining (mmseg: plain) + 0.4 that of the auxiliary head.

        The released code's class weights belong to its data set and are left out.
        """
        mining = FORMS[self.form].mining
        main = (self.mined_cross_entropy if mining else self.cross_entropy)(
            outputs, target, **options
        )
        if not self.has_map(outputs, "aux"):
            return main
        return main + AUX_WEIGHT * self.cross_entropy(outputs, target, "aux", **options)


def _drop_biases(block: APNB | AFNB) -> None:
    """Leave the convolutions of a block that stand before a BatchNorm without bias."""
    query = block.attention.query
    convolutions = [block.attention.key.conv, block.fusion.conv]
    if query is not None:
        convolutions.append(query.conv)
    for conv in convolutions:
        conv.register_parameter("bias", None)


register_variants(ANN, {"ann_r50": "resnet50", "ann_r101": "resnet101"})
