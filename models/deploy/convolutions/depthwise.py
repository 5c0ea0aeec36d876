"""Depthwise convolutions of a compiled network, in the C++ library.

oneDNN turns to plain loops where a dilated kernel reaches far beyond the map's border: 5x5 with a
dilation of 4, as in EfficientNets of output stride 8, then takes many times as long
(csrc/cpu/depthwise_convolution/host.h). The 1x1 convolution before, which makes a block of these
networks wide, goes into the same op in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from ..inner_ops import convolved, declare, uses_vectors
from .pointwise import pointwise_op

SIDES = (3, 5, 7)


@cache
def has_depthwise(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there, and takes maps of `dtype` in vectors.

    Alone oneDNN is faster at some 3x3 kernels; but the activation is another pass there.
    """
    known = hasattr(torch.ops.attnops_cpu, "depthwise_convolution")
    return known and dtype in (torch.float32, torch.bfloat16) and uses_vectors()


def is_depthwise(
    weight: Tensor,
    padding: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> bool:
    """Whether the library computes such a convolution: of a channel each, the map's size kept."""
    channels, each, side, width = weight.shape
    return (
        groups == channels
        and each == 1
        and side == width
        and side in SIDES
        and set(stride) == {1}
        and len(set(dilation)) == 1
        and set(padding) == {side // 2 * dilation[0]}
    )


def depthwise_op() -> torch._ops.OpOverload:
    """The op of the library: map, taps, bias, side, dilation, activation by number -> map."""
    declare("depthwise_convolution", _fake)
    return torch.ops.attnops_cpu.depthwise_convolution.default


def depthwise_op_with_mean() -> torch._ops.OpOverload:
    """The same op that also gives the means `[B, C, 1, 1]` of the result's channels."""
    declare("depthwise_convolution_with_mean", _fake_with_mean)
    return torch.ops.attnops_cpu.depthwise_convolution_with_mean.default


def expanded_depthwise_op() -> torch._ops.OpOverload:
    """The op with means, of what a 1x1 convolution in float32 gives.

    Map, panels, bias and activation of that convolution, then as for the others.
    """
    declare("expanded_depthwise_convolution", _fake_expanded)
    return torch.ops.attnops_cpu.expanded_depthwise_convolution.default


def expansion_of(x: Node) -> tuple[Any, ...] | None:
    """What `expanded_depthwise_op` takes of the 1x1 convolution that gives `x` to nothing else."""
    if x.target is not pointwise_op() or len(x.users) != 1:
        return None
    map, weight, bias, *others, _, activation = x.args
    return (map, weight, bias, activation) if others == [None] * len(others) else None


def _fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, side: int, dilation: int, activation: int
) -> Tensor:
    return torch.empty_like(x, memory_format=torch.channels_last)


def _fake_with_mean(x: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    return _fake(x, *arguments), x.new_empty((*x.shape[:2], 1, 1))


def _fake_expanded(
    x: Tensor, expansion: Tensor, bias: Tensor | None, activation: int, weight: Tensor, *others: Any
) -> tuple[Tensor, Tensor]:
    out = convolved(x, weight.shape[1])
    return out, x.new_empty((*out.shape[:2], 1, 1))


def in_taps(weight: Tensor) -> Tensor:
    """Weights `[C, 1, K, K]` as the library takes them: `[K * K, C]` in float32."""
    return weight.flatten(1).t().float().contiguous()
