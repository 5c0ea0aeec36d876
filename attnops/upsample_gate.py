"""Gating of a map by a bilinearly resized small one (GALD's LDv1, SANet)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ._checks import cast_and_check, check_choice, check_flag, check_number, check_shape
from ._layout import dense, empty_map, is_channels_inner
from ._op import Direction, Op
from ._op.overridable import overridable

NAME = "upsample_gate"
# The codes that implementations get are the positions here.
ACTIVATIONS = ("identity", "sigmoid", "relu")
RESIDUALS = ("none", "input", "gate")


@overridable
def upsample_gate(
    logits: Tensor,
    x: Tensor,
    activation: str = "sigmoid",
    activation_first: bool = False,
    residual: str = "input",
    input_weight: float = 1.0,
    align_corners: bool = False,
) -> Tensor:
    """Multiply `x` by a gate that is resized to its size on the fly.

    gate = activation(resize(logits)), or resize(activation(logits)) with `activation_first`;
    residual "input": gate·x + input_weight·x; "gate": gate·x + gate; "none": gate·x.

    Source: Li et al., GALD (BMVC 2019), eq. (2): residual "input"; the released block adds its
    input once more: input_weight=2. Zhong et al., Squeeze-and-Attention Networks (CVPR 2020),
    eq. (3): activation="relu", activation_first=True, residual="gate".

    Args:
        logits: `[B, C, h, w]`, any size.
        x: `[B, C, H, W]`, contiguous or channels_last.
        activation: "sigmoid", "relu" or "identity".
        activation_first: activate before the resize, not after it.
        residual: "input", "gate" or "none".
        input_weight: factor of the residual "input".
        align_corners: of the bilinear resize, as in torch.nn.functional.interpolate.

    Returns:
        `[B, C, H, W]` in the layout and dtype of `x`. Half precision is computed in float32.
        Under autocast both maps are cast to the autocast dtype. A neighbour that the resize weighs
        with 0 is not read, forward or backward: infinities and NaN reach only pixels that they
        have a share in.

    Raises:
        TypeError: an argument is not a float tensor, or an option has the wrong type.
        ValueError: shapes, dtypes or devices that do not match, an empty map of logits, an unknown
            option.

    Example:
        >>> import torch, attnops
        >>> attnops.upsample_gate(torch.randn(2, 16, 3, 4), torch.randn(2, 16, 24, 32)).shape
        torch.Size([2, 16, 24, 32])
    """
    check_choice(NAME, "activation", activation, ACTIVATIONS)
    activation_first = check_flag(NAME, "activation_first", activation_first)
    check_choice(NAME, "residual", residual, RESIDUALS)
    input_weight = check_number(NAME, "input_weight", input_weight)
    align_corners = check_flag(NAME, "align_corners", align_corners)
    logits, x = cast_and_check(NAME, {"logits": logits, "x": x})
    check_shape(NAME, "x", x, ("B", "C", "H", "W"))
    check_shape(NAME, "logits", logits, (*x.shape[:2], "h", "w"))
    if x.numel() and 0 in logits.shape:
        raise ValueError(f"{NAME}: logits are empty: {list(logits.shape)}")
    return _op(
        x,
        logits,
        ACTIVATIONS.index(activation),
        activation_first,
        RESIDUALS.index(residual),
        input_weight,
        align_corners,
    )[0]


def _fake(x: Tensor, logits: Tensor, *options: Any) -> tuple[Tensor]:
    return (empty_map(x.shape, x, is_channels_inner(x)),)


def _backward_fake(grad: Tensor, x: Tensor, logits: Tensor, *options: Any) -> tuple[Tensor, Tensor]:
    inner = is_channels_inner(x)
    return empty_map(x.shape, x, inner), empty_map(logits.shape, x, inner)


def _prepare(x: Tensor, logits: Tensor, *options: Any) -> tuple[Any, ...]:
    inner = is_channels_inner(x)
    return dense(x, inner), dense(logits, inner), *options


def _prepare_backward(grad: Tensor, x: Tensor, logits: Tensor, *options: Any) -> tuple[Any, ...]:
    inner = is_channels_inner(x)
    return *(dense(t, inner) for t in (grad, x, logits)), *options


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    x, logits, *options = inputs
    return (x, logits), tuple(options)


_OPTIONS = (
    "int activation, bool activation_first, int residual, float input_weight, bool align_corners"
)
_op = Op(
    NAME,
    Direction(f"(Tensor x, Tensor logits, {_OPTIONS}) -> (Tensor)", _fake, _prepare),
    Direction(
        f"(Tensor grad, Tensor x, Tensor logits, {_OPTIONS}) -> (Tensor, Tensor)",
        _backward_fake,
        _prepare_backward,
    ),
    setup=_setup,
)
