"""The modules of GALD, of the official repository."""

from __future__ import annotations

from torch import nn

from ..nn import CGNL, GALDBlock, LocalDistribution
from ._parts import NORMS, Candidate, Unsupported, has_children, on_meta, plain_conv, pointwise_conv


def local_distribution(module: nn.Module) -> list[Candidate] | None:
    """Children dconv1, dconv2, dconv3: depthwise, strided, BatchNorm, ReLU."""
    names = ("dconv1", "dconv2", "dconv3")
    if not has_children(module, *names):
        return None
    chains = [_strided(getattr(module, name), name) for name in names]
    channels = chains[0][0].in_channels
    if hasattr(module, "dconv4") or any(c[0].in_channels != channels for c in chains):
        raise Unsupported("the gate is not made of three equal steps")
    # The released module adds its input to the gated one; the other form is the gated one alone.
    candidates = []
    for weight in (1.0, 0.0, 2.0):
        ours = on_meta(lambda weight=weight: LocalDistribution(channels, weight))
        ours.gate = nn.Sequential(*chains)
        candidates.append(Candidate(ours, ((2, channels, 17, 20),)))
    return candidates


def cgnl(module: nn.Module) -> list[Candidate] | None:
    """Children t, p, g, z, gn."""
    if not has_children(module, "t", "p", "g", "z", "gn"):
        return None
    t, p, g = (pointwise_conv(getattr(module, name), name) for name in ("t", "p", "g"))
    if any(conv.bias is not None for conv in (t, p, g)):
        raise Unsupported("t, p and g must have no bias")
    groups = getattr(module, "groups", None) or 1
    channels, planes = t.in_channels, t.out_channels
    z = plain_conv(
        module.z,
        "z",
        kernel_size=(1, 1),
        stride=(1, 1),
        groups=groups,
        in_channels=planes,
        out_channels=channels,
        bias=None,
    )
    if not isinstance(module.gn, nn.GroupNorm) or module.gn.num_groups != groups:
        raise Unsupported(f"gn is not a GroupNorm with {groups} groups")
    use_scale = bool(getattr(module, "use_scale", False))
    ours = on_meta(lambda: CGNL(channels, planes, groups, use_scale))
    ours.t, ours.p, ours.g, ours.z, ours.gn = t, p, g, z, module.gn
    return [Candidate(ours, ((2, channels, 9, 11),))]


def block(module: nn.Module) -> list[Candidate] | None:
    """Children down, long_relation (a CGNL), local_attention (a local distribution)."""
    if not has_children(module, "down", "long_relation", "local_attention"):
        return None
    down = _strided(module.down, "down")
    inner = cgnl(module.long_relation)
    gate = local_distribution(module.local_attention)
    if inner is None or gate is None:
        raise Unsupported("long_relation or local_attention is something else")
    channels = down[0].in_channels
    candidates = []
    for weight in (2.0, 1.0):  # as released; the paper's equation
        planes = inner[0].module.t.out_channels
        ours = on_meta(lambda weight=weight, planes=planes: GALDBlock(channels, planes, weight))
        ours.down, ours.aggregation = down, inner[0].module
        ours.distribution.gate = gate[0].module.gate
        note = "" if weight == 2.0 else "in the form of the paper's equation, (1 + M)·Xg"
        candidates.append(Candidate(ours, ((2, channels, 31, 33),), note))
    return candidates


def _strided(module: nn.Module, what: str) -> nn.Sequential:
    """Depthwise 3x3 convolution, stride 2, no padding; BatchNorm; ReLU."""
    parts = list(module.children())
    if len(parts) != 3 or not isinstance(module, nn.Sequential):
        raise Unsupported(f"{what} is not a Sequential of convolution, BatchNorm and ReLU")
    conv, norm, relu = parts
    plain_conv(conv, what, kernel_size=(3, 3), stride=(2, 2), padding=(0, 0), dilation=(1, 1))
    if not conv.in_channels == conv.out_channels == conv.groups:
        raise Unsupported(f"{what} is not depthwise")
    if not isinstance(norm, NORMS) or not isinstance(relu, nn.ReLU):
        raise Unsupported(f"{what} is not a Sequential of convolution, BatchNorm and ReLU")
    return module
