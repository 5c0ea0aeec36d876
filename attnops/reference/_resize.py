"""Bilinear resizing that reads no neighbour of weight zero, in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ._exporting import is_portable

_all_finite: ContextVar[bool] = ContextVar("all_finite", default=False)


@contextmanager
def on_finite_values(*tensors: Tensor | None) -> Iterator[None]:
    """Let `resize` take PyTorch's kernel, several times as fast, where that makes no difference.

    `tensors` are all that is resized in the block, forward and backward. They are looked at on CPUs
    only (elsewhere this would wait for the device), and where they hold values (not in traced and
    transformed code).
    """
    given = [t for t in tensors if t is not None]
    if not all(map(_holds_values, given)) or not all(bool(t.sum().isfinite()) for t in given):
        yield
        return
    token = _all_finite.set(True)
    try:
        yield
    finally:
        _all_finite.reset(token)


def _holds_values(x: Tensor) -> bool:
    if torch.compiler.is_compiling() or torch._C._functorch.is_functorch_wrapped_tensor(x):
        return False
    return x.device.type == "cpu" and type(x) in (Tensor, torch.nn.Parameter)


def resize(x: Tensor, size: Sequence[int], align_corners: bool) -> Tensor:
    """`x` `[B, C, h, w]` at another size; finite maps as torch.nn.functional.interpolate has them.

    A neighbour whose weight is exactly 0 is skipped, forward and backward: infinities and NaN reach
    only the outputs that they have a share in, and a map of this size already passes unchanged.
    Half precision is blended in float32.
    """
    if is_portable() or (not torch.compiler.is_compiling() and _all_finite.get()):
        return interpolate(x, tuple(size), mode="bilinear", align_corners=align_corners)
    wide = x if x.dtype in (torch.float32, torch.float64) else x.float()
    for dim in (3, 2):
        wide = _resize_axis(wide, dim, size[dim - 2], align_corners)
    return wide.to(x.dtype)


def _resize_axis(x: Tensor, dim: int, outputs: int, align_corners: bool) -> Tensor:
    first, second, weight = _neighbours(x, x.shape[dim], outputs, align_corners)
    weight = weight.view(-1, *[1] * (3 - dim))
    return (1 - weight) * x.index_select(dim, first) + weight * x.index_select(dim, second)


def _neighbours(
    x: Tensor, inputs: int, outputs: int, align_corners: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """The two inputs that each output reads, and the weight of the second, in the dtype of `x`.

    As PyTorch finds them: with the rounding of that dtype, the product and the sum rounded once.
    Where the second weighs nothing, both are the first one, a half each: no neighbour is read, and
    nothing is multiplied by 0.
    """
    exact = x.dtype if x.device.type == "mps" else torch.float64
    apart = (inputs - 1, max(outputs - 1, 1)) if align_corners else (inputs, outputs)
    scale = (torch.full((), apart[0], dtype=x.dtype, device=x.device) / apart[1]).to(exact)
    half = 0.0 if align_corners else 0.5
    index = torch.arange(outputs, dtype=exact, device=x.device)
    position = ((index + half) * scale - half).to(x.dtype).clamp(min=0)
    first = position.long().clamp(max=inputs - 1)
    weight = (position - first).clamp(max=1)
    alone = weight == 0
    second = (first + ~alone).clamp(max=inputs - 1)
    return first, second, torch.where(alone, 0.5, weight)
