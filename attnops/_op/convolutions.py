"""Ops of a map and a list of convolutions: what `strip_conv` and `feed_forward` have in common.

Such an op gets the weights of its convolutions in a list, and of the biases those that there are,
`biased` saying of which convolutions: `(Tensor x, Tensor[] weights, Tensor[] biases, int[]
biased) -> (Tensor)`. Its gradient is one of x and of everything in both lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._layout import dense, empty_map, in_strides_of, is_channels_inner
from . import Direction, Op

_PARAMETERS = "Tensor[] weights, Tensor[] biases, int[] biased"


def convolutions_op(name: str, fake: Callable[..., tuple[Tensor]]) -> Op:
    """The op `name`.

    Args:
        name: public name.
        fake: (x, weights, biases, biased) -> what its output is like.
    """
    return Op(
        name,
        Direction(f"(Tensor x, {_PARAMETERS}) -> (Tensor)", fake, _prepare),
        Direction(
            f"(Tensor grad, Tensor x, {_PARAMETERS}) -> (Tensor, Tensor[], Tensor[])",
            _backward_fake,
            _prepare_backward,
        ),
        setup=_setup,
        gradient=_gradient,
        restore=_restore,
    )


def _backward_fake(
    grad: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor], biased: list[int]
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    grad_x = empty_map(x.shape, x, is_channels_inner(x))
    return grad_x, [torch.empty_like(w) for w in weights], [torch.empty_like(b) for b in biases]


def _prepare(
    x: Tensor, weights: list[Tensor], biases: list[Tensor], biased: list[int]
) -> tuple[Any, ...]:
    return dense(x), [w.contiguous() for w in weights], [b.contiguous() for b in biases], biased


def _prepare_backward(grad: Tensor, x: Tensor, *parameters: Any) -> tuple[Any, ...]:
    return dense(grad, is_channels_inner(x)), *_prepare(x, *parameters)


def _restore(args: tuple[Any, ...], outputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Give gradients of parameters, if `outputs` has some, the strides of the parameters."""
    if len(outputs) == 1:
        return outputs
    grad_x, *lists = outputs
    pairs = (zip(found, like, strict=True) for found, like in zip(lists, args[2:4], strict=True))
    return grad_x, *([in_strides_of(g, p) for g, p in pair] for pair in pairs)


def _setup(inputs: tuple[Any, ...], outputs: list[Tensor]) -> tuple[tuple, tuple]:
    x, weights, biases, biased = inputs
    return (x, *weights, *biases), (len(weights), biased)


def _gradient(
    grads: tuple[Tensor | None, ...], saved: list[Tensor], kept: tuple, call: Callable[..., Any]
) -> tuple[Any, ...]:
    (count, biased), (x, *parameters) = kept, saved
    weights, biases = parameters[:count], parameters[count:]
    if grads[0] is None:
        found = None, [None] * len(weights), [None] * len(biases)
    else:
        found = call(grads[0], x, weights, biases, biased)
    # An empty list of integers looks like one of tensors, which wants a list of gradients.
    return *found, None if biased else []
