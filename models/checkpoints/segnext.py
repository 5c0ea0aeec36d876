"""SegNeXt's names: mmsegmentation, the official repository, ImageNet backbones, single blocks."""

from __future__ import annotations

from collections.abc import Iterable

from attnops.nn import MSCA, Hamburger, MSCABlock

from ..backbones.mscan import MSCAN
from ..decoders import Decoder
from ..segnext import SegNeXt
from . import formats_of
from ._mapping import Format
from .backbones import pretrained

Rules = list[tuple[str, str]]


def gating_unit(prefix: str, ours: str, strips: int) -> Rules:
    """The strip convolutions `conv0`, `conv0_1`, ... of a gating unit against MSCA's."""
    rules = [(f"{prefix}conv0.*", f"{ours}local.*"), (f"{prefix}conv{strips}.*", f"{ours}mix.*")]
    for i in range(strips):
        rules.append((f"{prefix}conv{i}_1.*", f"{ours}rows.{i}.*"))
        rules.append((f"{prefix}conv{i}_2.*", f"{ours}columns.{i}.*"))
    return rules


def hamburger(prefix: str, ours: str) -> Rules:
    return [
        (f"{prefix}ham_in.conv.*", f"{ours}ham_in.*"),
        (f"{prefix}ham_out.conv.*", f"{ours}ham_out.*"),
        (f"{prefix}ham_out.gn.*", f"{ours}norm.*"),
    ]


def block(prefix: str, ours: str, depthwise: str, strips: int = 3) -> Rules:
    """A block; `depthwise` is what the feed-forward network's convolution is called."""
    rules = []
    for number in (1, 2):
        rules.append((f"{prefix}layer_scale_{number}", f"{ours}scale{number}"))
        rules.append((f"{prefix}norm{number}.*", f"{ours}norm{number}.*"))
    rules.append((f"{prefix}attn.proj_1.*", f"{ours}attention.project_in.*"))
    rules.append((f"{prefix}attn.proj_2.*", f"{ours}attention.project_out.*"))
    rules += gating_unit(f"{prefix}attn.spatial_gating_unit.", f"{ours}attention.gate.", strips)
    rules.append((f"{prefix}mlp.fc1.*", f"{ours}feed_forward.expand.*"))
    rules.append((f"{prefix}mlp.{depthwise}.*", f"{ours}feed_forward.depthwise.*"))
    rules.append((f"{prefix}mlp.fc2.*", f"{ours}feed_forward.contract.*"))
    return rules


def backbone(prefix: str, depthwise: str) -> Rules:
    """MSCAN; `depthwise` as in `block`."""
    rules = []
    for i in range(4):
        ours = f"backbone.stages.{i}."
        if i == 0:
            for part in (0, 1, 3, 4):
                rules.append((f"{prefix}patch_embed1.proj.{part}.*", f"{ours}down.{part}.*"))
        else:
            rules.append((f"{prefix}patch_embed{i + 1}.proj.*", f"{ours}down.0.*"))
            rules.append((f"{prefix}patch_embed{i + 1}.norm.*", f"{ours}down.1.*"))
        rules.append((f"{prefix}norm{i + 1}.*", f"{ours}norm.*"))
        rules += block(f"{prefix}block{i + 1}.*.", f"{ours}blocks.*.", depthwise)
    return rules


def head(prefix: str, ours: str) -> Rules:
    rules = hamburger(f"{prefix}hamburger.", f"{ours}context.")
    for block in ("squeeze", "align"):
        rules.append((f"{prefix}{block}.conv.*", f"{ours}{block}.conv.*"))
        rules.append((f"{prefix}{block}.gn.*", f"{ours}{block}.norm.*"))
    return rules


_DEPTHWISE = {"mmseg": "dwconv", "official": "dwconv.dwconv"}


@formats_of(SegNeXt)
def _(model: SegNeXt) -> Iterable[Format]:
    if not isinstance(model.backbone, MSCAN):
        yield from pretrained(model.backbone)
        return
    for style, depthwise in _DEPTHWISE.items():
        if isinstance(model.decoder, Decoder) and isinstance(model.decoder.context, Hamburger):
            rules = backbone("backbone.", depthwise) + head("decode_head.", "decoder.")
            rules.append(("decode_head.conv_seg.*", "classify.*"))
            # With rand_init off the published module stores bases, drawn once.
            yield Format(style, tuple(rules), dropped=("decode_head.hamburger.ham.bases",))
    for style, depthwise in _DEPTHWISE.items():
        for name, prefix in (("backbone", ""), ("backbone-prefixed", "backbone.")):
            yield Format(
                f"{style}-{name}",
                tuple(backbone(prefix, depthwise)),
                dropped=("head.*", "head.**", "decode_head.**"),
                partial=True,
            )


@formats_of(MSCA)
def _(module: MSCA) -> Iterable[Format]:
    yield Format("published", tuple(gating_unit("", "", len(module.rows))))


@formats_of(MSCABlock)
def _(module: MSCABlock) -> Iterable[Format]:
    for style, depthwise in _DEPTHWISE.items():
        yield Format(style, tuple(block("", "", depthwise, len(module.attention.gate.rows))))


@formats_of(Hamburger)
def _(module: Hamburger) -> Iterable[Format]:
    yield Format("published", tuple(hamburger("", "")), dropped=("ham.bases",))
