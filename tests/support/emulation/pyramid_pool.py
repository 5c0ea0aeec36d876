"""Sends pyramid_pool problems to the emulated CUDA kernels (pyramid_pool_driver.cpp)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from .exchange import Form, exchange, map_to_bytes, to_bytes


@dataclass(frozen=True)
class Problem(Form):
    """A pooling problem; with few multiprocessors kernels share planes less."""

    shape: tuple[int, int, int, int]
    sizes: tuple[int, ...] = (1, 3, 6, 8)
    use_max: bool = False
    multiprocessors: int = field(default=4, kw_only=True)

    @property
    def cells(self) -> int:
        return sum(n * n for n in self.sizes)

    def request(self, backward: bool, data: bytes) -> bytes:
        pooling = (self.use_max, *self.shape, len(self.sizes), *self.sizes)
        return self.header(backward, *pooling) + data


def forward(
    program: Path, folder: Path, problem: Problem, x: Tensor, **options: str
) -> tuple[Tensor, Tensor | None]:
    """out `[B, C, S]`, and argmax `[B, C, S]` for max.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(False, map_to_bytes(x, problem.channels_last))
    result = exchange(program, folder, request, **options)
    shape = (*problem.shape[:2], problem.cells)
    out = result.take(shape, x.dtype)
    return out, result.take(shape, torch.int32) if problem.use_max else None


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    argmax: Tensor | None,
    **options: str,
) -> Tensor:
    """grad_x `[B, C, H, W]`.

    Raises:
        Failed: the kernels did something they must not.
    """
    data = to_bytes(grad) + (b"" if argmax is None else to_bytes(argmax))
    result = exchange(program, folder, problem.request(True, data), **options)
    return result.take_map(problem.shape, grad.dtype, problem.channels_last)
