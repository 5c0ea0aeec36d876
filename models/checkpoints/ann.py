"""ANN's names: the official repository and mmsegmentation, whole networks and single blocks."""

from __future__ import annotations

from collections.abc import Iterable

from attnops.nn import AFNB, APNB

from ..ann import ANN
from ..backbones.resnet import DilatedResNet
from . import formats_of
from ._blocks import Naming, Normed
from ._mapping import Format
from .backbones import PLAIN, SEPARATE, STEM, has_deep_stem, pretrained, resnet

CORE = "stages.0."


def official_block(relu: bool, shared: bool) -> Naming:
    """A block of the authors' code.

    Args:
        relu: whether a ReLU follows the last BatchNorm (APNB); both then stand in a container of
            their own, so that the BatchNorm is called `conv_bn_dropout.1.0`.
        shared: the query is the key's module, which the file holds under both names.
    """
    inner = "attention."
    chains = [("f_key", "key")] if shared else [("f_key", "key"), ("f_query", "query")]
    normed = [
        Normed(f"{CORE}{there}.0", f"{CORE}{there}.1.0", f"{inner}{here}.conv", f"{inner}{here}.bn")
        for there, here in chains
    ]
    last = "conv_bn_dropout.1.0" if relu else "conv_bn_dropout.1"
    normed.append(Normed("conv_bn_dropout.0", last, "fusion.conv", "fusion.bn"))
    plain = ((f"{CORE}f_value", f"{inner}value"), (f"{CORE}W", f"{inner}out"))
    copies = ((f"{CORE}f_query", f"{CORE}f_key"),) if shared else ()
    return Naming(tuple(normed), plain, copies)


def mmseg_block(shared: bool) -> Naming:
    """A block of mmsegmentation; `shared` as for `official_block`."""
    chains = [("key_project", "key")]
    if not shared:
        chains.append(("query_project", "query"))
    normed = [
        Normed(
            f"{CORE}{there}.conv",
            f"{CORE}{there}.bn",
            f"attention.{here}.conv",
            f"attention.{here}.bn",
        )
        for there, here in chains
    ]
    normed.append(Normed("bottleneck.conv", "bottleneck.bn", "fusion.conv", "fusion.bn"))
    plain = (
        (f"{CORE}value_project", "attention.value"),
        (f"{CORE}out_project", "attention.out"),
    )
    copies = ((f"{CORE}query_project", f"{CORE}key_project"),) if shared else ()
    return Naming(tuple(normed), plain, copies, bias=False)


OFFICIAL = Naming(
    (
        Normed("context.0", "context.1.0", "context.0", "context.1"),
        Normed("dsn.0", "dsn.1.0", "aux.0", "aux.1"),
    ),
    (("cls", "cls"), ("dsn.3", "aux.4")),
).joined(
    official_block(relu=False, shared=False).within("fusion.", "fusion."),
    official_block(relu=True, shared=True).within("context.2.", "context.3."),
)

MMSEG = Naming(
    (
        Normed(
            "decode_head.bottleneck.conv", "decode_head.bottleneck.bn", "context.0", "context.1"
        ),
        Normed("auxiliary_head.convs.0.conv", "auxiliary_head.convs.0.bn", "aux.0", "aux.1"),
    ),
    (("decode_head.conv_seg", "cls"), ("auxiliary_head.conv_seg", "aux.4")),
    bias=False,
).joined(
    mmseg_block(shared=False).within("decode_head.fusion.", "fusion."),
    mmseg_block(shared=True).within("decode_head.context.", "context.3."),
)


@formats_of(ANN)
def _(model: ANN) -> Iterable[Format]:
    yield from pretrained(model.backbone)
    if not isinstance(model.backbone, DilatedResNet):
        return
    deep = has_deep_stem(model.backbone)
    bias = model.fusion.fusion.conv.bias is not None
    official = resnet("backbone.", SEPARATE if deep else PLAIN, "backbone.prefix.")
    yield OFFICIAL.format("official", bias, official)
    yield MMSEG.format("mmseg", bias, resnet("backbone.", STEM if deep else PLAIN))


@formats_of(APNB)
def _(block: APNB) -> Iterable[Format]:
    if block.attention.share == "key_query":
        yield from _of_block(block, official_block(relu=True, shared=True), mmseg_block(True))


@formats_of(AFNB)
def _(block: AFNB) -> Iterable[Format]:
    yield from _of_block(block, official_block(relu=False, shared=False), mmseg_block(False))


def _of_block(block: APNB | AFNB, official: Naming, mmseg: Naming) -> Iterable[Format]:
    """Only the released form has published names, not the one of the paper's equations."""
    key = block.attention.key
    if key.bn is not None:
        yield official.format("official", key.conv.bias is not None)
        yield mmseg.format("mmseg", key.conv.bias is not None)
