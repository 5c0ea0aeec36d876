"""The ops of GALD: local attention, the gate of local distribution, CGNL's core."""

from __future__ import annotations

from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn.functional import interpolate, pad, unfold

import attnops

from ._definition import COMPILED, EAGER, NATTEN, OURS, Definition, Draw, Shape, size_of, variant

GROUPS = 8


def unfolded_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int
) -> Tensor:
    """Every neighbour of every position written out by unfold, as such modules are published."""
    batch, channels, height, width = query.shape
    window = {"dilation": dilation, "padding": dilation * (kernel // 2)}
    keys = unfold(key, kernel, **window).view(batch, channels, kernel**2, height, width)
    values = unfold(value, kernel, **window).view(batch, -1, kernel**2, height, width)
    weights = (query.unsqueeze(2) * keys).sum(dim=1).softmax(dim=1)
    return (weights.unsqueeze(1) * values).sum(dim=2)


def shifted_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int
) -> Tensor:
    """One shifted view a neighbour: the plain form that compiles best."""
    height, width = query.shape[2:]
    margin = dilation * (kernel // 2)
    keys, values = (pad(x, (margin,) * 4) for x in (key, value))
    corners = [(i * dilation, j * dilation) for i in range(kernel) for j in range(kernel)]

    def shifted(x: Tensor, top: int, left: int) -> Tensor:
        return x[:, :, top : top + height, left : left + width]

    scores = torch.stack([(query * shifted(keys, *at)).sum(dim=1) for at in corners], dim=1)
    weights = scores.softmax(dim=1).unsqueeze(2)
    return sum(weights[:, n] * shifted(values, *at) for n, at in enumerate(corners))


def natten_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int
) -> Tensor:
    from natten import na2d

    heads = [x.permute(0, 2, 3, 1).unsqueeze(3).contiguous() for x in (query, key, value)]
    out = na2d(*heads, kernel_size=kernel, dilation=dilation, scale=1.0)
    return out.squeeze(3).permute(0, 3, 1, 2)


def fused_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel: int, dilation: int
) -> Tensor:
    return attnops.local_attention(query, key, value, kernel, dilation)


def _attention_inputs(draw: Draw, shape: Shape, **options: int) -> list[Tensor]:
    query, key, value = (draw.map(*shape) for _ in range(3))
    return [query * shape[1] ** -0.5, key, value]


def _attention_macs(shape: Shape, backward: bool, kernel: int, dilation: int) -> int:
    """Scores and their sum of values; the backward has the gradients of both factors of each."""
    return (6 if backward else 2) * size_of(shape) * kernel**2


def eager_gate(x: Tensor, logits: Tensor, side: int) -> Tensor:
    """The released module: resize with aligned corners, sigmoid, x + x·M."""
    gate = interpolate(logits, x.shape[2:], mode="bilinear", align_corners=True)
    return x + x * torch.sigmoid(gate)


def fused_gate(x: Tensor, logits: Tensor, side: int) -> Tensor:
    return attnops.upsample_gate(logits, x, align_corners=True)


def _gate_elements(shape: Shape, backward: bool, side: int) -> int:
    """x and out, then grad, x and its gradient; the small map and its gradient beside."""
    small = size_of(shape[:2]) * side**2
    return 5 * size_of(shape) + 3 * small if backward else 2 * size_of(shape) + small


def eager_groups(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    """The released loop over groups of flattened maps."""
    out = []
    for t, p, v in zip(*(x.chunk(GROUPS, dim=1) for x in (theta, phi, g)), strict=True):
        batch, channels, height, width = t.shape
        t, p, v = (x.reshape(batch, 1, -1) for x in (t, p, v))
        affinity = torch.bmm(p, v.permute(0, 2, 1))
        out.append(torch.bmm(affinity, t).view(batch, channels, height, width))
    return torch.cat(out, dim=1)


def plain_groups(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    affinity = (phi * g).unflatten(1, (GROUPS, -1)).sum(dim=(2, 3, 4))
    return (theta.unflatten(1, (GROUPS, -1)) * affinity[:, :, None, None, None]).flatten(1, 2)


def fused_groups(theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
    return attnops.group_attention(theta, phi, g, GROUPS)


_BASE = {"kernel": 5, "dilation": 3}
LOCAL_ATTENTION = Definition(
    functions={
        EAGER: unfolded_attention,
        COMPILED: shifted_attention,
        OURS: fused_attention,
        # Where it is missing on a GPU, its rows say so.
        **({NATTEN: natten_attention} if find_spec("natten") or torch.cuda.is_available() else {}),
    },
    variants=(
        variant(1, 256, 64, 64, **_BASE),
        variant(1, 256, 64, 64, kernel=3, dilation=3),
        variant(1, 256, 64, 64, kernel=7, dilation=3),
        variant(1, 256, 64, 64, kernel=5, dilation=1),
        variant(1, 256, 64, 64, kernel=5, dilation=6),
        variant(1, 64, 64, 64, **_BASE),
        variant(1, 512, 64, 64, **_BASE),
        variant(1, 256, 128, 128, **_BASE),
        variant(1, 256, 256, 128, **_BASE),
    ),
    inputs=_attention_inputs,
    # query, key, value and out; then these but out, grad and three gradients
    elements=lambda shape, backward, **_: (11 if backward else 4) * size_of(shape),
    macs=_attention_macs,
    differentiable=3,
    unchecked=((NATTEN, "its window is shifted at the border, not padded"),),
)

UPSAMPLE_GATE = Definition(
    functions={EAGER: eager_gate, COMPILED: eager_gate, OURS: fused_gate},
    variants=(
        variant(1, 512, 64, 64, side=8),
        variant(1, 512, 128, 128, side=15),
        variant(8, 512, 64, 64, side=7),
    ),
    inputs=lambda draw, shape, side: [draw.map(*shape), draw.map(*shape[:2], side, side)],
    elements=_gate_elements,
    differentiable=2,
)

GROUP_ATTENTION = Definition(
    functions={EAGER: eager_groups, COMPILED: plain_groups, OURS: fused_groups},
    variants=(variant(1, 256, 64, 64), variant(1, 256, 128, 128), variant(8, 256, 32, 32)),
    inputs=lambda draw, shape: [draw.map(*shape) / 8 for _ in range(3)],
    # phi and g, then theta and out; then theta, phi, g, grad (twice) and three gradients
    elements=lambda shape, backward: (12 if backward else 4) * size_of(shape),
    differentiable=3,
)
