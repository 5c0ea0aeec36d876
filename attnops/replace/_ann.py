"""The blocks of ANN, of the official repository and of mmsegmentation."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from ..nn import AFNB, APNB
from ._parts import Candidate, Chain, Unsupported, chain, has_children, on_meta, pointwise_conv


@dataclass(frozen=True)
class _Names:
    fuse: str
    key: str
    query: str
    value: str
    out: str


_OFFICIAL = _Names("conv_bn_dropout", "f_key", "f_query", "f_value", "W")
_MMSEG = _Names("bottleneck", "key_project", "query_project", "value_project", "out_project")


def block(module: nn.Module) -> list[Candidate] | None:
    """Children `stages`, a list of attention cores, and the fusing convolution."""
    for names in (_OFFICIAL, _MMSEG):
        if not has_children(module, "stages", names.fuse):
            continue
        stages = list(module.stages.children())
        parts = (names.key, names.query, names.value, names.out)
        if stages and all(has_children(stage, *parts) for stage in stages):
            if len(stages) > 1:
                raise Unsupported(f"{len(stages)} attention cores are summed")
            return _replacement(module, stages[0], names)
    return None


def _replacement(module: nn.Module, core: nn.Module, names: _Names) -> list[Candidate]:
    sizes = _grid_sizes(core)
    if not getattr(core, "matmul_norm", True):
        raise Unsupported("scores are not divided by the root of the key channels")
    key = _projection(getattr(core, names.key), names.key)
    shared = getattr(core, names.query) is getattr(core, names.key)
    query = key if shared else _projection(getattr(core, names.query), names.query)
    value = pointwise_conv(getattr(core, names.value), names.value)
    out = pointwise_conv(getattr(core, names.out), names.out)
    fuse = chain(getattr(module, names.fuse), names.fuse)
    if fuse.norm is None:
        raise Unsupported(f"{names.fuse} has no BatchNorm")
    if fuse.relu != shared:
        has = "a" if fuse.relu else "no"
        whose = "the key's" if shared else "its own"
        raise Unsupported(f"{names.fuse} has {has} ReLU, but the query has {whose} projection")
    low, high = key.conv.in_channels, query.conv.in_channels
    widths = (key.conv.out_channels, value.out_channels, out.out_channels)
    if fuse.conv.in_channels != out.out_channels + high:
        raise Unsupported(f"{names.fuse} does not take the context and the map")
    if fuse.conv.out_channels != out.out_channels:
        raise Unsupported(f"{names.fuse} changes the number of channels")
    rate = 0.0 if fuse.dropout is None else fuse.dropout.p
    if shared:
        ours = on_meta(lambda: APNB(low, *widths, sizes, dropout=rate))
        inputs = ((2, low, 17, 19),)
    else:
        ours = on_meta(lambda: AFNB(low, high, *widths, sizes, dropout=rate))
        inputs = ((2, low, 19, 17), (2, high, 11, 13))
        _put(ours.attention.query, query)
    _put(ours.attention.key, key)
    ours.attention.value, ours.attention.out = value, out
    _put(ours.fusion, fuse)
    if fuse.dropout is not None:
        ours.fusion.dropout = fuse.dropout
    note = ""
    if not out.weight.is_meta and not out.weight.any():
        note = "its context is zero, as initialised: the comparison saw the fusion alone"
    return [Candidate(ours, inputs, note)]


def _put(target: nn.Module, parts: Chain) -> None:
    target.conv, target.bn = parts.conv, parts.norm


def _projection(module: nn.Module, what: str) -> Chain:
    parts = chain(module, what)
    pointwise_conv(parts.conv, what)
    if parts.norm is None or not parts.relu or parts.dropout is not None:
        raise Unsupported(f"{what} is not a convolution with BatchNorm and ReLU")
    return parts


def _grid_sizes(core: nn.Module) -> list[int]:
    """Sides of the pooled grids, in order; other pooling than that is refused."""
    sizes = []
    for pool in core.modules():
        if isinstance(pool, nn.AdaptiveAvgPool2d):
            size = pool.output_size
            sides = set(size) if isinstance(size, tuple) else {size}
            if len(sides) != 1 or None in sides:
                raise Unsupported(f"a grid is {size}")
            sizes += sides
        elif isinstance(pool, nn.MaxPool2d) and pool.kernel_size not in (1, (1, 1)):
            raise Unsupported("the query is pooled")
    if not sizes:
        raise Unsupported("no adaptive average pooling was found")
    return sizes
