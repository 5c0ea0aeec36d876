"""Operations of the ops for torch.utils.flop_counter: twice the multiply-adds of their products.

Counted are the chains that the papers publish, not what an implementation does: a gradient takes
two products for each one of the forward. A bilinear resize takes four multiply-adds an element, a
pooling one for each element and level.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod
from typing import Any

import torch
from torch import Tensor

from . import Op

_BILINEAR = 4


def _pyramid_pool(x: Tensor, sizes: list[int], *_: Any) -> int:
    return x.numel() * len(sizes)


def _anchor_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> int:
    positions = query.shape[0] * prod(query.shape[2:])
    return positions * key.shape[2] * (key.shape[1] + value.shape[1])


def _local_attention(
    query: Tensor, key: Tensor, value: Tensor, kernel_size: list[int], *_: Any
) -> int:
    return prod(kernel_size) * (query.numel() + value.numel())


def _group_attention(theta: Tensor, *_: Any) -> int:
    return 2 * theta.numel()


def _strip_conv(x: Tensor, weights: list[Tensor], *_: Any) -> int:
    return x.numel() * sum(prod(weight.shape[2:]) for weight in weights)


def _depthwise_gelu(x: Tensor, weight: Tensor, *_: Any) -> int:
    return x.numel() * prod(weight.shape[2:])


def _feed_forward(x: Tensor, weights: list[Tensor], *_: Any) -> int:
    return x.shape[0] * prod(x.shape[2:]) * sum(weight.numel() for weight in weights)


def _nmf(x: Tensor, bases: Tensor, steps: int, *_: Any) -> int:
    """2 steps + 1 updates, each with X times a factor, a Gram matrix, and a factor times that."""
    batch, channels, positions = x.shape
    rank, updates = bases.shape[2], 2 * steps + 1
    gram = (channels + positions) * rank**2
    return batch * ((updates + 1) * channels * positions * rank + updates * gram)


def _upsample_gate(x: Tensor, *_: Any) -> int:
    return (_BILINEAR + 1) * x.numel()


def _merge_scales(
    scores: list[Tensor], logits: Tensor | None, height: int, width: int, *_: Any
) -> int:
    return (_BILINEAR + 1) * len(scores) * prod(scores[0].shape[:2]) * height * width


def _upsample_cross_entropy(logits: Tensor, target: Tensor, *_: Any) -> int:
    return _BILINEAR * logits.shape[1] * target.numel()


def _upsample_argmax(logits: Tensor, height: int, width: int, *_: Any) -> int:
    return _BILINEAR * prod(logits.shape[:2]) * height * width


MULTIPLY_ADDS: dict[str, Callable[..., int]] = {
    "pyramid_pool": _pyramid_pool,
    "anchor_attention": _anchor_attention,
    "local_attention": _local_attention,
    "group_attention": _group_attention,
    "strip_conv": _strip_conv,
    "depthwise_gelu": _depthwise_gelu,
    "feed_forward": _feed_forward,
    "nmf": _nmf,
    "upsample_gate": _upsample_gate,
    "merge_scales": _merge_scales,
    "upsample_cross_entropy": _upsample_cross_entropy,
    "upsample_argmax": _upsample_argmax,
}


def register_flops(ops: Iterable[Op]) -> None:
    """Make FlopCounterMode count `ops` and their gradients.

    Nothing is counted where PyTorch's counter cannot be imported: it imports Triton, which may
    raise anything.
    """
    try:
        from torch.utils.flop_counter import register_flop_formula
    except Exception:
        return
    for op in ops:
        forward, backward = _formulas(op)
        register_flop_formula(getattr(torch.ops.attnops, op.name), get_raw=True)(forward)
        if op.differentiable:
            packet = getattr(torch.ops.attnops, f"{op.name}_backward")
            register_flop_formula(packet, get_raw=True)(backward)


def _formulas(op: Op) -> tuple[Callable[..., int], Callable[..., int]]:
    """Operations of `op` and of its gradient, from the arguments of each."""
    multiply_adds = MULTIPLY_ADDS[op.name]

    def forward(*args: Any, out_val: Any = None) -> int:
        return 2 * multiply_adds(*args)

    def backward(*args: Any, out_val: Any = None) -> int:
        return 4 * multiply_adds(*op.forward_arguments(*args[:-1]))

    return forward, backward
