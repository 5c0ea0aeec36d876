"""SegNeXt: a convolutional encoder with multi-scale attention, and a light decoder."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from attnops._checks import check_choice
from attnops.nn.functional import convolve

from ._checks import check_classes
from ._model import SegmentationModel
from ._registry import register
from .backbones.choice import Pretrained, check_in_channels, load_backbone, make_backbone
from .backbones.mscan import MSCAN
from .decoders import DECODERS, Decoder, MLPDecoder


@dataclass(frozen=True)
class Variant:
    """Sizes of a published network; `rank` is that of the authors' code."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    channels: int  # of the decoder
    rank: int
    drop_path_rate: float


VARIANTS = {
    "t": Variant((32, 64, 160, 256), (3, 3, 5, 2), 256, 16, 0.1),
    "s": Variant((64, 128, 320, 512), (2, 2, 4, 2), 256, 16, 0.1),
    "b": Variant((64, 128, 320, 512), (3, 3, 12, 3), 512, 64, 0.1),
    "l": Variant((64, 128, 320, 512), (3, 5, 27, 3), 1024, 64, 0.3),
}


class SegNeXt(SegmentationModel):
    """MSCAN and a decoder with a Hamburger.

    The authors' images are RGB, normalised with mean (123.675, 116.28, 103.53) and standard
    deviation (58.395, 57.12, 57.375) on the scale 0 to 255.

    The rank is in no tensor of a checkpoint, so it has to be known: the authors' B and L have 64,
    mmsegmentation's 16. The Hamburger's bases are drawn anew in every forward, as published, from
    PyTorch's generator of the CPU; `seed` makes inference deterministic.

    Source: Guo et al., SegNeXt: Rethinking Convolutional Attention Design for Semantic
    Segmentation (NeurIPS 2022), table 2; what the paper leaves open as in the released code.

    Args:
        variant: "t", "s", "b" or "l".
        num_classes: K.
        rank: of the Hamburger; None: the authors'.
        decoder: block of context: "ham" (Hamburger), "nl" (non-local), "cc" (criss-cross), "ema"
            (expectation maximisation), "msca"; or "mlp", SegFormer's decoder.
        drop_path_rate: of the encoder's last block; None: the authors'.
        dropout: rate of the Dropout2d before the classifier.
        seed: of the Hamburger's bases; None: drawn anew in every forward.
        backbone: "mscan", any name of timm's that takes features_only, which then has its own
            strides, or a module with `channels` that returns four maps.
        in_channels: of the images.
        pretrained: weights of the backbone: True, those that timm publishes, or the path of a file.

    Shapes: images `[B, in_channels, H, W]`, both sides at least 32; logits at the stride 8
        ("mlp": 4).

    Raises:
        ValueError: an unknown variant or decoder, or a rate out of range.

    Example:
        >>> import torch
        >>> from attnops.models import SegNeXt
        >>> SegNeXt("t", num_classes=19).eval()(torch.randn(1, 3, 64, 96))["out"].shape
        torch.Size([1, 19, 64, 96])
    """

    smallest_side = 32
    classifiers = ("classify.*",)

    def __init__(
        self,
        variant: str,
        num_classes: int = 150,
        rank: int | None = None,
        decoder: str = "ham",
        drop_path_rate: float | None = None,
        dropout: float = 0.1,
        seed: int | None = None,
        backbone: str | nn.Module = "mscan",
        in_channels: int = 3,
        pretrained: Pretrained = False,
    ) -> None:
        super().__init__()
        num_classes = check_classes("SegNeXt", num_classes)
        check_choice("SegNeXt", "variant", variant, tuple(VARIANTS))
        check_choice("SegNeXt", "decoder", decoder, DECODERS)
        sizes = VARIANTS[variant]
        rate = sizes.drop_path_rate if drop_path_rate is None else drop_path_rate
        for name, value in (("drop_path_rate", rate), ("dropout", dropout)):
            if not 0.0 <= value < 1.0:
                raise ValueError(f"SegNeXt: {name} must be in [0, 1), got {value!r}")
        self.in_channels = check_in_channels("SegNeXt", in_channels)

        def mscan(channels: int) -> MSCAN:
            return MSCAN(sizes.widths, sizes.depths, drop_path_rate=rate, in_channels=channels)

        self.backbone = make_backbone(
            "SegNeXt", backbone, {"mscan": mscan}, self.in_channels, pretrained, output_stride=32
        )
        widths = self.backbone.channels
        if decoder == "mlp":
            self.decoder = MLPDecoder(widths, sizes.channels, dropout)
        else:
            rank = sizes.rank if rank is None else rank
            self.decoder = Decoder(widths, sizes.channels, decoder, rank, seed, dropout)
        self.classify = nn.Conv2d(sizes.channels, num_classes, 1)
        self.decoder.apply(_initialise)
        nn.init.normal_(self.classify.weight, 0.0, 0.01)
        nn.init.zeros_(self.classify.bias)
        load_backbone(self, pretrained)

    def logits(self, images: Tensor) -> dict[str, Tensor]:
        return {"out": convolve(self.classify, self.decoder(self.backbone(images)))}


def _initialise(module: nn.Module) -> None:
    """Kaiming's normal weights by fan-out; a convolution that starts at zero stays there."""
    if isinstance(module, nn.Conv2d) and (module.weight.is_meta or module.weight.any()):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)


for _variant in VARIANTS:
    register(f"segnext_{_variant}")(partial(SegNeXt, _variant))
