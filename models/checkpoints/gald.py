"""GALD's names in the official repository, with both namings of the stem, and its blocks'."""

from __future__ import annotations

from collections.abc import Iterable

from attnops.nn import ASPP, CGNL, GALDBlock, LocalDistribution, PyramidPooling

from ..backbones.resnet import DilatedResNet
from ..gald import GALD, GALDv1
from . import formats_of
from ._mapping import Format
from .backbones import DEEP, PLAIN, SEPARATE, Rules, has_deep_stem, pretrained, resnet


def local_distribution(published: str = "", ours: str = "") -> Rules:
    return tuple((f"{published}dconv{i + 1}.*.*", f"{ours}gate.{i}.*.*") for i in range(3))


def gald_block(published: str = "", ours: str = "") -> Rules:
    return (
        (f"{published}down.*.*", f"{ours}down.*.*"),
        (f"{published}long_relation.**", f"{ours}aggregation.**"),
        *local_distribution(f"{published}local_attention.", f"{ours}distribution."),
    )


HEADS: Rules = (
    ("head.conva.*.*", "head.conva.*.*"),
    *gald_block("head.a2block.", "head.block."),
    ("head.convb.*.*", "head.convb.*.*"),
    ("head.bottleneck.3.*", "head.cls.*"),
    ("head.bottleneck.*.*", "head.bottleneck.*.*"),
    ("dsn.*.*", "aux.*.*"),
)


@formats_of(GALD)
def _(model: GALD) -> Iterable[Format]:
    """Files written before August 2020 name the convolutions of the stem one by one."""
    yield from pretrained(model.backbone)
    released = isinstance(model, GALDv1) and isinstance(model.head.block, GALDBlock)
    if not released or not isinstance(model.backbone, DilatedResNet):
        return
    stems = {"official": PLAIN}
    if has_deep_stem(model.backbone):
        stems = {"official": DEEP, "official-2019": SEPARATE}
    for style, names in stems.items():
        yield Format(style, resnet("", names) + HEADS)


@formats_of(GALDBlock)
def _(block: GALDBlock) -> Iterable[Format]:
    yield Format("official", gald_block())


@formats_of(LocalDistribution)
def _(block: LocalDistribution) -> Iterable[Format]:
    yield Format("official", local_distribution())


@formats_of(CGNL)
def _(block: CGNL) -> Iterable[Format]:
    yield Format("official", (("**", "**"),))


@formats_of(ASPP)
def _(block: ASPP) -> Iterable[Format]:
    """The image's branch begins with its pooling, the others with their convolution."""
    rules = [("conv1.1.*", "image.0.*"), ("conv1.2.*", "image.1.*")]
    rules += [(f"conv{i + 2}.*.*", f"branches.{i}.*.*") for i in range(len(block.branches))]
    yield Format("official", (*rules, ("bottleneck.*.*", "bottleneck.*.*")))


@formats_of(PyramidPooling)
def _(block: PyramidPooling) -> Iterable[Format]:
    """Every level begins with its pooling."""
    rules = (
        ("stages.*.1.*", "levels.*.0.*"),
        ("stages.*.2.*", "levels.*.1.*"),
        ("bottleneck.*.*", "bottleneck.*.*"),
    )
    yield Format("official", rules)
