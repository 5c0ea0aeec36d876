"""Sends pyramid_pool problems to the emulated CUDA kernels (pyramid_pool_driver.cpp)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .exchange import DTYPES, exchange, fields, map_to_bytes, to_bytes


@dataclass(frozen=True)
class Problem:
    """A pooling problem and how the device looks: few multiprocessors make the kernels share
    planes less, and `misalign` elements off a 16-byte boundary rule out wide accesses.
    """

    shape: tuple[int, int, int, int]
    sizes: tuple[int, ...] = (1, 3, 6, 8)
    use_max: bool = False
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    multiprocessors: int = 4
    misalign: int = 0

    @property
    def cells(self) -> int:
        return sum(n * n for n in self.sizes)

    def header(self, backward: bool) -> bytes:
        return fields(
            *(DTYPES.index(self.dtype), backward, self.use_max, self.channels_last, *self.shape),
            *(self.multiprocessors, self.misalign, len(self.sizes), *self.sizes),
        )


def forward(
    program: Path, folder: Path, problem: Problem, x: Tensor, **options: str
) -> tuple[Tensor, Tensor | None]:
    """out `[B, C, S]`, and argmax `[B, C, S]` for max.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.header(False) + map_to_bytes(x, problem.channels_last)
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
    result = exchange(program, folder, problem.header(True) + data, **options)
    return result.take_map(problem.shape, grad.dtype, problem.channels_last)
