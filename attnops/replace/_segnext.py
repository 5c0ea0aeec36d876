"""SegNeXt's block, gating unit and Hamburger, of the official repository and mmsegmentation."""

from __future__ import annotations

import inspect
import re

from torch import nn

from ..nn import MSCA, Hamburger, MSCABlock
from ._parts import (
    NORMS,
    Candidate,
    Unsupported,
    chain,
    depthwise_conv,
    has_children,
    on_meta,
    pointwise_conv,
)

_STRIP = re.compile(r"conv(\d+)_[12]")


def block(module: nn.Module) -> list[Candidate] | None:
    """Children norm1, attn (around a gating unit), norm2, mlp, and two layer scales."""
    if not has_children(module, "norm1", "attn", "norm2", "mlp"):
        return None
    attn, mlp = module.attn, module.mlp
    if not has_children(attn, "proj_1", "activation", "spatial_gating_unit", "proj_2"):
        return None
    if not has_children(mlp, "fc1", "dwconv", "act", "fc2"):
        return None
    known = {"norm1", "attn", "drop_path", "norm2", "mlp"}
    others = [name for name, _ in module.named_children() if name not in known]
    if others:
        raise Unsupported(f"it also has {', '.join(others)}")
    norm = module.norm1
    for name in ("norm1", "norm2"):
        if not isinstance(getattr(module, name), NORMS):
            raise Unsupported(f"{name} is a {type(getattr(module, name)).__name__}")
    channels = norm.num_features
    gate = attn.spatial_gating_unit
    if not isinstance(gate, MSCA):
        candidates = gating_unit(gate)
        if candidates is None:
            return None
        gate = candidates[0].module
    for name, activation in (("attn.activation", attn.activation), ("mlp.act", mlp.act)):
        if not isinstance(activation, nn.GELU) or activation.approximate != "none":
            raise Unsupported(f"{name} is not the exact GELU")
    if getattr(getattr(mlp, "drop", None), "p", 0.0):
        raise Unsupported(f"mlp.drop has p={mlp.drop.p}")
    rate = _drop_rate(getattr(module, "drop_path", None))
    square = {"in_channels": channels, "out_channels": channels}
    project_in = pointwise_conv(attn.proj_1, "attn.proj_1", **square)
    project_out = pointwise_conv(attn.proj_2, "attn.proj_2", **square)
    expand = pointwise_conv(mlp.fc1, "mlp.fc1", in_channels=channels)
    hidden = expand.out_channels
    inner = list(mlp.dwconv.children())
    depthwise = inner[0] if len(inner) == 1 else mlp.dwconv  # the authors wrap it
    depthwise = depthwise_conv(depthwise, "mlp.dwconv", hidden)
    contract = pointwise_conv(mlp.fc2, "mlp.fc2", in_channels=hidden, out_channels=channels)
    scales = [getattr(module, f"layer_scale_{i}", None) for i in (1, 2)]
    if any(not isinstance(s, nn.Parameter) or s.shape != (channels,) for s in scales):
        raise Unsupported("its layer scales are no vectors of parameters")

    ours = on_meta(lambda: MSCABlock(channels, 1.0, rate))
    ours.norm1, ours.norm2 = module.norm1, module.norm2
    ours.scale1, ours.scale2 = scales
    attention, feed_forward = ours.attention, ours.feed_forward
    attention.project_in, attention.gate, attention.project_out = project_in, gate, project_out
    feed_forward.expand, feed_forward.depthwise = expand, depthwise
    feed_forward.contract = contract
    takes = inspect.signature(module.forward).parameters
    tokens = ((2, 9 * 11, channels), 9, 11)
    return [Candidate(ours, tokens if len(takes) > 1 else ((2, channels, 9, 11),))]


def _drop_rate(drop_path: nn.Module | None) -> float:
    """Of an Identity, or of mmcv's or timm's DropPath."""
    if drop_path is None or isinstance(drop_path, nn.Identity):
        return 0.0
    rate = getattr(drop_path, "drop_prob", None)
    if type(drop_path).__name__ != "DropPath" or not getattr(drop_path, "scale_by_keep", True):
        raise Unsupported(f"drop_path is a {type(drop_path).__name__} of another kind")
    return float(rate or 0.0)


def gating_unit(module: nn.Module) -> list[Candidate] | None:
    """Children conv0, conv0_1, conv0_2, ..., and the 1x1 convolution with the number of strips."""
    names = {name for name, _ in module.named_children()}
    numbers = {int(match[1]) for match in map(_STRIP.fullmatch, names) if match}
    count = len(numbers)
    wanted = {"conv0", f"conv{count}"}
    wanted |= {f"conv{i}_{part}" for i in range(count) for part in (1, 2)}
    if count == 0 or names != wanted:
        return None
    channels = getattr(module.conv0, "in_channels", 0)
    local = depthwise_conv(module.conv0, "conv0", channels)
    rows, columns = [], []
    for i in range(count):
        for part, found in ((1, rows), (2, columns)):
            name = f"conv{i}_{part}"
            found.append(depthwise_conv(getattr(module, name), name, channels))
            if found[-1].kernel_size[part - 1] != 1:
                raise Unsupported(f"{name} has the kernel {found[-1].kernel_size}")
        if rows[-1].kernel_size[1] != columns[-1].kernel_size[0]:
            raise Unsupported(f"conv{i}_1 and conv{i}_2 differ in length")
    mix = pointwise_conv(
        getattr(module, f"conv{count}"), f"conv{count}", in_channels=channels, out_channels=channels
    )
    if local.kernel_size[0] != local.kernel_size[1]:
        raise Unsupported(f"conv0 has the kernel {local.kernel_size}")
    lengths = [row.kernel_size[1] for row in rows]
    ours = on_meta(lambda: MSCA(channels, local.kernel_size[0], lengths))
    ours.local, ours.mix = local, mix
    ours.rows, ours.columns = nn.ModuleList(rows), nn.ModuleList(columns)
    return [Candidate(ours, ((2, channels, 17, 19),))]


def hamburger(module: nn.Module) -> list[Candidate] | None:
    """Children ham_in, ham, ham_out, where ham has no parameters but a rank R and steps."""
    if not has_children(module, "ham_in", "ham", "ham_out"):
        return None
    ham = module.ham
    settings = ("R", "S", "train_steps", "eval_steps")
    if any(not isinstance(getattr(ham, name, None), int) for name in settings):
        raise Unsupported("ham has no rank R, groups S and steps")
    if any(True for _ in ham.parameters()):
        raise Unsupported("ham has parameters")
    if ham.S != 1:
        raise Unsupported(f"ham factorises {ham.S} groups of channels one by one")
    if getattr(ham, "inv_t", 1) != 1:
        raise Unsupported(f"ham has inv_t={ham.inv_t}")
    if not getattr(ham, "spatial", True):
        raise Unsupported("ham factorises the transposed map")
    entry = chain(module.ham_in, "ham_in")
    exit_ = chain(module.ham_out, "ham_out", (nn.GroupNorm,))
    if entry.norm is not None or entry.relu:
        raise Unsupported("ham_in has a norm or an activation")
    if exit_.norm is None or exit_.relu:
        raise Unsupported("ham_out is not a convolution with GroupNorm")
    ham_in = pointwise_conv(entry.conv, "ham_in")
    channels = ham_in.in_channels
    square = {"in_channels": channels, "out_channels": channels}
    pointwise_conv(ham_in, "ham_in", **square)
    ham_out = pointwise_conv(exit_.conv, "ham_out", **square)
    if ham_out.bias is not None:
        raise Unsupported("the convolution of ham_out has a bias")
    groups = exit_.norm.num_groups
    ours = on_meta(
        lambda: Hamburger(channels, ham.R, ham.train_steps, ham.eval_steps, norm_groups=groups)
    )
    ours.ham_in, ours.ham_out, ours.norm = ham_in, ham_out, exit_.norm
    note = "bases are drawn anew in every forward; set .bases for the same labels every time"
    if not getattr(ham, "rand_init", True):
        bases = getattr(ham, "bases", None)
        if bases is None:
            raise Unsupported("ham keeps its bases, but has not drawn them: run it once")
        ours.bases = bases.detach()
        note = "keeps the bases that were drawn"
    return [Candidate(ours, ((2, channels, 9, 11),), note)]
