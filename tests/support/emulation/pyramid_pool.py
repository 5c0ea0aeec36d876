"""Sends pyramid_pool problems to the emulated CUDA kernels (pyramid_pool_driver.cpp)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from harness import check_results
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


def pooled(x: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Every level by PyTorch, and for max where it found the maxima."""
    if not problem.use_max:
        levels = [F.adaptive_avg_pool2d(x, n).flatten(2) for n in problem.sizes]
        return torch.cat(levels, 2), None
    maxima = [F.adaptive_max_pool2d(x, n, return_indices=True) for n in problem.sizes]
    return (
        torch.cat([value.flatten(2) for value, _ in maxima], 2),
        torch.cat([index.flatten(2) for _, index in maxima], 2).int(),
    )


def make_input(problem: Problem) -> Tensor:
    """Random; for max on a coarse grid, so that there are many ties."""
    x = torch.randn(problem.shape)
    return ((x * 2).round() / 2 if problem.use_max else x).to(problem.dtype)


def check(
    program: Path, folder: Path, problem: Problem, x: Tensor | None = None, **options: str
) -> None:
    """Forward and backward of `problem` agree with PyTorch."""
    x = make_input(problem) if x is None else x
    expected, argmax = pooled(x.double(), problem)
    grad = torch.randn(expected.shape).to(x.dtype)
    out, indices = forward(program, folder, problem, x, **options)
    if problem.use_max:
        torch.testing.assert_close(indices, argmax)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=0, equal_nan=True)
    grad_x = backward(program, folder, problem, grad, argmax, **options)
    check_results([out, grad_x], lambda x: pooled(x, problem)[0], [x], grad)
