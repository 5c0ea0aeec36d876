"""Names of the backbones: stems of ResNets, files trained on ImageNet, VGG16."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from ..backbones.resnet import DilatedResNet
from ..backbones.timm_features import TimmFeatures, TimmNetwork
from ..deeplab import DeepLabAttention
from ..sanet import SANet
from . import formats_of
from ._mapping import Format, State, fits_any

Rules = tuple[tuple[str, str], ...]

# Modules of the three-convolution stem: timm's and ours, those of the older official files, and
# mmsegmentation's.
DEEP = ("conv1.0", "conv1.1", "conv1.3", "conv1.4", "conv1.6", "bn1")
SEPARATE = ("conv1", "bn1", "conv2", "bn2", "conv3", "bn3")
STEM = ("stem.0", "stem.1", "stem.3", "stem.4", "stem.6", "stem.7")
PLAIN = ("conv1", "bn1")

EFFICIENT_NET = ("conv_stem", "bn1", "blocks")


def resnet(prefix: str, names: Iterable[str], stem_prefix: str | None = None) -> Rules:
    """A ResNet whose stem's modules are called `names`, against ours in a network.

    Args:
        prefix: of the stages in the file.
        names: one of the tuples above.
        stem_prefix: of the stem, where it is not `prefix`.
    """
    names = tuple(names)
    stem_prefix = prefix if stem_prefix is None else stem_prefix
    ours = PLAIN if names == PLAIN else DEEP
    stem = zip(names, ours, strict=True)
    return (
        *((f"{stem_prefix}{there}.*", f"backbone.{here}.*") for there, here in stem),
        (f"{prefix}layer*.**", "backbone.layer*.**"),
    )


def has_deep_stem(backbone: DilatedResNet) -> bool:
    return hasattr(backbone.conv1, "__len__")


def pretrained(backbone: object) -> Iterable[Format]:
    """Files of the backbone alone, as trained on ImageNet."""
    if isinstance(backbone, TimmFeatures) and hasattr(backbone.net, EFFICIENT_NET[0]):
        rules = tuple((f"{name}.**", f"backbone.net.{name}.**") for name in EFFICIENT_NET)
        yield Format(
            "backbone", rules, dropped=("conv_head.*", "bn2.*", "classifier.*"), partial=True
        )
    if not isinstance(backbone, DilatedResNet):
        return
    stems = {"backbone": PLAIN}
    if has_deep_stem(backbone):
        stems = {"backbone": DEEP, "backbone-separate": SEPARATE, "backbone-mmseg": STEM}
    for style, names in stems.items():
        yield Format(style, resnet("", names), dropped=("fc.*",), partial=True)


@formats_of(TimmNetwork)
def _(network: TimmNetwork) -> Iterable[Format]:
    classifiers = tuple(f"{name}.*" for name in network.classifiers)

    def without_classifiers(state: State, module: nn.Module) -> State:
        return {key: value for key, value in state.items() if not fits_any(classifiers, key)}

    yield Format("timm", (("**", "net.**"),), load=without_classifiers)


@formats_of(SANet)
def _(model: SANet) -> Iterable[Format]:
    yield from pretrained(model.backbone)


@formats_of(DeepLabAttention)
def _(model: DeepLabAttention) -> Iterable[Format]:
    """VGG16, and DeepLab-LargeFOV without attention as the common PyTorch ports number it."""
    convolutions = ("features.*.*", "backbone.features.*.*")
    classifiers = ("classifier.**", "pre_logits.**", "head.**")
    yield Format("backbone", (convolutions,), dropped=classifiers, partial=True)
    large_field = (
        ("features.32.*", "field.0.*"),
        ("features.35.*", "field.3.*"),
        ("features.38.*", "cls.*"),
    )
    yield Format("port", (*large_field, convolutions), partial=True)
