"""The ops of SegNeXt: strip convolutions, the feed-forward network and its middle, NMF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d, gelu, normalize

import attnops

from ._definition import COMPILED, CUDNN, EAGER, OURS, Definition, Draw, Shape, size_of, variant

LOCAL, STRIPS = 5, (7, 11, 21)
TAPS = LOCAL**2 + 2 * sum(STRIPS)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = tuple(k // 2 for k in weight.shape[2:])
    return conv2d(x, weight, bias, padding=padding, groups=x.shape[1])


def _strips_of(parameters: tuple[Tensor, ...]) -> list[tuple[tuple, tuple]]:
    pairs = list(zip(parameters[0::2], parameters[1::2], strict=True))
    return list(zip(pairs[0::2], pairs[1::2], strict=True))


def _gating_unit(
    convolve: Callable[..., Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    parameters: tuple[Tensor, ...],
) -> Tensor:
    local = convolve(x, weight, bias)
    out = local
    for horizontal, vertical in _strips_of(parameters):
        out = out + convolve(convolve(local, *horizontal), *vertical)
    return out


def eager_strips(x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
    """The published gating unit's seven convolutions and their sum."""
    return _gating_unit(_depthwise, x, weight, bias, parameters)


def _cudnn_depthwise(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    padding = [k // 2 for k in weight.shape[2:]]
    out = torch.cudnn_convolution(
        x, weight, padding, (1, 1), (1, 1), x.shape[1], True, False, allow_tf32=False
    )
    return out + bias.view(-1, 1, 1)


def cudnn_strips(x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
    """The same through cuDNN, where eager PyTorch takes its own depthwise kernels."""
    return _gating_unit(_cudnn_depthwise, x, weight, bias, parameters)


def fused_strips(x: Tensor, weight: Tensor, bias: Tensor, *parameters: Tensor) -> Tensor:
    return attnops.strip_conv(x, weight, bias, _strips_of(parameters))


def _strip_inputs(draw: Draw, shape: Shape) -> list[Tensor]:
    channels = shape[1]
    sides = [(LOCAL, LOCAL)]
    for k in STRIPS:
        sides += [(1, k), (k, 1)]
    inputs = [draw.map(*shape)]
    for h, w in sides:
        inputs += [draw.normal(channels, 1, h, w) / (h * w) ** 0.5, draw.normal(channels)]
    return inputs


def eager_depthwise_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return gelu(_depthwise(x, weight, bias))


def _depthwise_inputs(draw: Draw, shape: Shape) -> list[Tensor]:
    return [draw.map(*shape), draw.normal(shape[1], 1, 3, 3) / 3, draw.normal(shape[1])]


def eager_feed_forward(
    x: Tensor,
    expand: Tensor,
    depthwise: Tensor,
    contract: Tensor,
    expand_bias: Tensor,
    depthwise_bias: Tensor,
    contract_bias: Tensor,
    **options: Any,
) -> Tensor:
    hidden = eager_depthwise_gelu(conv2d(x, expand, expand_bias), depthwise, depthwise_bias)
    return conv2d(hidden, contract, contract_bias)


def fused_feed_forward(x: Tensor, *parameters: Tensor, **options: Any) -> Tensor:
    return attnops.feed_forward(x, *parameters)


def _feed_forward_inputs(draw: Draw, shape: Shape, hidden: int) -> list[Tensor]:
    channels = shape[1]
    return [
        draw.map(*shape),
        draw.normal(hidden, channels, 1, 1) / channels**0.5,
        draw.normal(hidden, 1, 3, 3) / 3,
        draw.normal(channels, hidden, 1, 1) / hidden**0.5,
        *(draw.normal(count) for count in (hidden, hidden, channels)),
    ]


def _feed_forward_elements(shape: Shape, backward: bool, hidden: int) -> int:
    """The maps, and weights that small maps do not outnumber."""
    weights = hidden * (2 * shape[1] + 9)
    return (5 if backward else 2) * size_of(shape) + (3 if backward else 1) * weights


def _feed_forward_macs(shape: Shape, backward: bool, hidden: int) -> int:
    """The backward takes two products for each of the forward, whether from kept maps or not."""
    forward = size_of(shape) * hidden * 2 + size_of(shape) // shape[1] * hidden * 9
    return (3 if backward else 1) * forward


def eager_nmf(x: Tensor, bases: Tensor, rank: int, steps: int, grad: str) -> Tensor:
    """The published loop; the one-step gradient as the Hamburger's authors have it."""
    with torch.set_grad_enabled(torch.is_grad_enabled() and grad == "unrolled"):
        coef = torch.softmax(torch.bmm(x.transpose(1, 2), bases), dim=-1)
        for _ in range(steps):
            coef = _update_coef(x, bases, coef)
            numerator = torch.bmm(x, coef)
            denominator = bases.bmm(coef.transpose(1, 2).bmm(coef))
            bases = bases * numerator / (denominator + 1e-6)
    return _update_coef(x, bases, coef)


def _update_coef(x: Tensor, bases: Tensor, coef: Tensor) -> Tensor:
    numerator = torch.bmm(x.transpose(1, 2), bases)
    denominator = coef.bmm(bases.transpose(1, 2).bmm(bases))
    return coef * numerator / (denominator + 1e-6)


def fused_nmf(x: Tensor, bases: Tensor, rank: int, steps: int, grad: str) -> Tensor:
    return attnops.nmf(x, bases, steps, grad=grad)[1]


def _nmf_inputs(draw: Draw, shape: Shape, rank: int, **options: Any) -> list[Tensor]:
    batch, channels, positions = shape
    x = draw.normal(batch, channels, positions).relu()
    return [x, normalize(draw.normal(batch, channels, rank).abs(), dim=1)]


def _nmf_elements(shape: Shape, backward: bool, steps: int, **options: Any) -> int:
    """x once a step (the coefficients are small), and its gradient."""
    passes = steps + 1
    return size_of(shape) * (2 * passes + 1 if backward else passes)


def _nmf_macs(shape: Shape, backward: bool, rank: int, steps: int, grad: str) -> int:
    """The products with x of the definition; the backward takes two for each."""
    batch, channels, positions = shape
    product = batch * channels * positions * rank
    forward = (2 * steps + 2) * product
    if not backward:
        return forward
    return forward + (2 * product if grad == "one_step" else 2 * forward)


STRIP_CONV = Definition(
    functions={
        EAGER: eager_strips,
        COMPILED: eager_strips,
        OURS: fused_strips,
        **({CUDNN: cudnn_strips} if torch.cuda.is_available() else {}),
    },
    variants=(
        variant(1, 64, 128, 128),
        variant(1, 32, 128, 128),
        variant(1, 160, 32, 32),
        variant(8, 64, 64, 64),
    ),
    inputs=_strip_inputs,
    elements=lambda shape, backward: (5 if backward else 2) * size_of(shape),
    macs=lambda shape, backward: (3 if backward else 1) * size_of(shape) * TAPS,
    differentiable=3 + 4 * len(STRIPS),
)

DEPTHWISE_GELU = Definition(
    functions={
        EAGER: eager_depthwise_gelu,
        COMPILED: eager_depthwise_gelu,
        OURS: attnops.depthwise_gelu,
    },
    variants=(variant(1, 512, 64, 64), variant(1, 256, 128, 128), variant(8, 640, 32, 32)),
    inputs=_depthwise_inputs,
    elements=lambda shape, backward: (5 if backward else 2) * size_of(shape),
    macs=lambda shape, backward: (4 if backward else 1) * size_of(shape) * 9,
    differentiable=3,
)

FEED_FORWARD = Definition(
    functions={
        EAGER: eager_feed_forward,
        COMPILED: eager_feed_forward,
        OURS: fused_feed_forward,
    },
    variants=(
        variant(1, 64, 64, 64, hidden=512),
        variant(1, 32, 128, 128, hidden=256),
        variant(1, 160, 32, 32, hidden=640),
        variant(8, 64, 40, 32, hidden=512),
    ),
    inputs=_feed_forward_inputs,
    elements=_feed_forward_elements,
    macs=_feed_forward_macs,
    differentiable=7,
)

_UNROLLED = {"steps": 6, "grad": "unrolled"}
NMF = Definition(
    functions={EAGER: eager_nmf, COMPILED: eager_nmf, OURS: fused_nmf},
    variants=(
        variant(1, 512, 4096, rank=64, **_UNROLLED),
        variant(1, 512, 4096, rank=64, steps=6, grad="one_step"),
        variant(1, 256, 4096, rank=16, **_UNROLLED),
        variant(1, 512, 16384, rank=64, **_UNROLLED),
        variant(8, 512, 4096, rank=64, **_UNROLLED),
    ),
    inputs=_nmf_inputs,
    elements=_nmf_elements,
    macs=_nmf_macs,
    differentiable=1,
    layouts=("contiguous",),
)
