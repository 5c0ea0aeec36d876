"""Memory layouts of maps, and the dtype of statistics: one place decides them, for fake kernels and
implementations alike.

A map `[B, C, *spatial]` is either contiguous, or *channels-inner*: for two spatial axes this is
PyTorch's channels_last, for one axis the transpose of a contiguous `[B, N, C]`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def is_channels_inner(x: Tensor) -> bool:
    """Whether `x` `[B, C, *spatial]` keeps the channels of a position side by side.

    Holds for slices of channels_last maps too. Maps that are contiguous as well (one channel, one
    position) count as contiguous.
    """
    return x.dim() > 2 and x.shape[1] != 1 and x.stride(1) == 1 and not x.is_contiguous()


def dense(x: Tensor, channels_inner: bool | None = None) -> Tensor:
    """`x` without gaps, in its own layout or the given one; a copy only if it has to be."""
    if channels_inner is None:
        channels_inner = is_channels_inner(x)
    if not channels_inner:
        return x.contiguous()
    if x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x
    return x.movedim(1, -1).contiguous().movedim(-1, 1)


def empty_map(shape: Sequence[int], like: Tensor, channels_inner: bool) -> Tensor:
    """A new uninitialised map of `shape` `[B, C, *spatial]` with dtype and device of `like`."""
    if not channels_inner:
        return like.new_empty(shape)
    strides, step = [0, 1], _at_least_one(shape[1])
    for size in reversed(shape[2:]):
        strides.insert(2, step)
        step = step * _at_least_one(size)
    strides[0] = step
    return like.new_empty_strided(shape, strides)


def _at_least_one(size: int) -> int:
    """Of sizes that may be symbols, while a graph is traced."""
    return max(size, 1) if isinstance(size, int) else torch.sym_max(size, 1)


def statistics_dtype(x: Tensor) -> torch.dtype:
    """What is accumulated over elements of `x`, and kept for the backward, is in this dtype."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def in_strides_of(x: Tensor, like: Tensor) -> Tensor:
    """`x` in the strides of `like`, of the same shape, as `torch.empty_like` has them."""
    if x.stride() == like.stride():
        return x
    wanted = torch.empty_like(like, device="meta").stride()
    if all(n == 1 or a == b for n, a, b in zip(x.shape, x.stride(), wanted, strict=True)):
        return x if x.stride() == wanted else x.as_strided(x.shape, wanted)
    return torch.empty_like(like).copy_(x)
