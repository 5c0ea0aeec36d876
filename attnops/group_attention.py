"""The core of compact generalized non-local blocks (GALD's global aggregation)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_integer, check_shape
from ._layout import dense, empty_map, is_channels_inner, statistics_dtype
from ._op import Direction, Op
from ._op.overridable import overridable

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
    groups = check_integer(NAME, "groups", groups)
    theta, phi, g = cast_and_check(NAME, {"theta": theta, "phi": phi, "g": g})
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
    statistics = statistics_dtype(theta)
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


_op = Op(
    NAME,
    Direction(
        "(Tensor theta, Tensor phi, Tensor g, int groups) -> (Tensor, Tensor)", _fake, _prepare
    ),
    Direction(
        "(Tensor grad, Tensor theta, Tensor phi, Tensor g, Tensor affinity, int groups)"
        " -> (Tensor, Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
    forward_arguments=_forward_arguments,
)
