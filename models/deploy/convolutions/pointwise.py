"""1x1 convolutions of a compiled network in float32, in the C++ library.

oneDNN is as fast, but wants weights in an order of its own for some sizes of maps and lays them
out anew whenever such a map comes. The library (csrc/cpu/pointwise/host.h) takes them in one order
for all, and does with the result what else a network does.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from ..feed_forward import panels
from ..inner_ops import convolved, declare, uses_vectors

ACTIVATIONS = ("none", "relu", "gelu", "silu")  # by number, as in csrc/cpu/common/activation.h


@cache
def has_pointwise(dtype: torch.dtype) -> bool:
    """Whether the C++ library is there and multiplies `dtype` about as fast as oneDNN."""
    known = hasattr(torch.ops.attnops_cpu, "pointwise")
    return known and dtype == torch.float32 and uses_vectors()


def pointwise_op() -> torch._ops.OpOverload:
    """The op of the library: map, panels, bias, gate, residual, factor, scale, outputs, activation
    -> map.

    It gives `activation((convolution of scale * map + bias) * gate + factor * residual)`.
    """
    declare("pointwise", _fake)
    return torch.ops.attnops_cpu.pointwise.default


def _fake(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gate: Tensor | None,
    residual: Tensor | None,
    factor: Tensor | None,
    scale: Tensor | None,
    outputs: int,
    activation: int,
) -> Tensor:
    return convolved(x, outputs)


def in_rows(weight: Tensor) -> Tensor:
    """Weights `[O, C, 1, 1]` as the library takes them: `[O/16, C, 16]`, with zeros past O."""
    matrix = weight.flatten(1)
    return panels(matrix, torch.float32)[:, : matrix.shape[1]].flatten(2).contiguous()
