"""The core of compact generalized non-local blocks (GALD's global aggregation)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ._checks import autocast, check_integer, check_shape, check_tensors
from ._layout import dense, empty_map, is_channels_inner
from ._op import Op
from ._overridable import overridable

NAME = "group_attention"


@overridable
def group_attention(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> Tensor:
    """Scale each group of channels of `theta` by the inner product of the same group of phi and g.

    a[b, k] = sum over the channels c of group k and all positions of phi[b, c] · g[b, c];
    out[b, c] = a[b, group of c] · theta[b, c].

    Source: Yue et al., Compact Generalized Non-local Network (NeurIPS 2018), eq. (8) with the dot
    product kernel, as GALD uses it (BMVC 2019, section 3.2).

    Args:
        theta: `[B, P, H, W]`, contiguous or channels_last.
        phi: like theta.
        g: like theta.
        groups: number of groups of neighbouring channels, a divisor of P.

    Returns:
        `[B, P, H, W]` in the layout and dtype of `theta`. The sums are accumulated in float32
        for half precision, and are unscaled: the product with theta may overflow there.
        Under autocast all maps are cast to the autocast dtype.

    Raises:
        TypeError: an argument is not a float tensor, or `groups` no integer.
        ValueError: shapes, dtypes or devices that do not match, or `groups` does not divide P.

    Example:
        >>> import torch, attnops
        >>> theta, phi, g = torch.randn(3, 2, 16, 9, 9).unbind()
        >>> attnops.group_attention(theta, phi, g, groups=8).shape
        torch.Size([2, 16, 9, 9])
    """
    for name, tensor in (("theta", theta), ("phi", phi), ("g", g)):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{NAME}: {name} must be a tensor, got {type(tensor).__name__}")
    groups = check_integer(NAME, "groups", groups)
    theta, phi, g = autocast(theta, phi, g)
    check_tensors(NAME, theta=theta, phi=phi, g=g)
    check_shape(NAME, "theta", theta, ("B", "P", "H", "W"))
    check_shape(NAME, "phi", phi, theta.shape)
    check_shape(NAME, "g", g, theta.shape)
    if groups < 1 or theta.shape[1] % groups or theta.shape[1] == 0:
        raise ValueError(
            f"{NAME}: groups must divide the {theta.shape[1]} channels of theta, got {groups}"
        )
    return _op(theta, phi, g, groups)[0]


def _fake(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    out = empty_map(theta.shape, theta, is_channels_inner(theta))
    statistics = torch.float64 if theta.dtype == torch.float64 else torch.float32
    return out, theta.new_empty((theta.shape[0], groups), dtype=statistics)


def _backward_fake(
    grad: Tensor, theta: Tensor, phi: Tensor, g: Tensor, affinity: Tensor, groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    inner = is_channels_inner(theta)
    return tuple(empty_map(x.shape, theta, inner) for x in (theta, phi, g))


def _prepare(theta: Tensor, phi: Tensor, g: Tensor, groups: int) -> tuple[Any, ...]:
    inner = is_channels_inner(theta)
    return *(dense(x, inner) for x in (theta, phi, g)), groups


def _prepare_backward(
    grad: Tensor, theta: Tensor, phi: Tensor, g: Tensor, affinity: Tensor, groups: int
) -> tuple[Any, ...]:
    inner = is_channels_inner(theta)
    return *(dense(x, inner) for x in (grad, theta, phi, g)), affinity.contiguous(), groups


def _forward_arguments(
    grad: Tensor, theta: Tensor, phi: Tensor, g: Tensor, affinity: Tensor, groups: int
) -> tuple[Any, ...]:
    return theta, phi, g, groups


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    *maps, groups = inputs
    return (*maps, outputs[1]), (groups,)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Tensor | None, ...]:
    if grads[0] is None:
        return None, None, None, None
    return *call(grads[0], *saved, *kept), None


_op = Op(
    NAME,
    forward="(Tensor theta, Tensor phi, Tensor g, int groups) -> (Tensor, Tensor)",
    backward="(Tensor grad, Tensor theta, Tensor phi, Tensor g, Tensor affinity, int groups)"
    " -> (Tensor, Tensor, Tensor)",
    fake=_fake,
    backward_fake=_backward_fake,
    prepare=_prepare,
    prepare_backward=_prepare_backward,
    setup=_setup,
    gradient=_gradient,
    forward_arguments=_forward_arguments,
)
