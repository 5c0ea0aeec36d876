"""Sends local_attention problems to the emulated CUDA kernels (local_attention_driver.cpp)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from harness import error
from torch import Tensor

from attnops import reference
from attnops.reference.local_attention import local_scores

from .exchange import Form, checker, exchange, map_to_bytes, to_bytes


@dataclass(frozen=True)
class Problem(Form):
    """A local_attention problem; many multiprocessors make tiles small."""

    key_shape: tuple[int, int, int, int]
    value_channels: int
    kernel_size: tuple[int, int] = (3, 3)
    dilation: tuple[int, int] = (1, 1)
    scale: float = 0.5
    mask_border: bool = False

    @property
    def value_shape(self) -> tuple[int, int, int, int]:
        batch, _, height, width = self.key_shape
        return batch, self.value_channels, height, width

    @property
    def statistics(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def request(self, backward: bool, maps: Sequence[Tensor], lse: Tensor | None = None) -> bytes:
        batch, channels, height, width = self.key_shape
        shape = (batch, channels, self.value_channels, height, width)
        window = (*self.kernel_size, *self.dilation, self.mask_border)
        header = self.header(backward, *shape, *window)
        data = b"".join(map_to_bytes(x, self.channels_last) for x in maps)
        scale = struct.pack("<d", self.scale)
        return header + scale + data + (b"" if lse is None else to_bytes(lse))


def forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> tuple[Tensor, Tensor]:
    """out `[B, Cv, H, W]` and lse `[B, H, W]` of query, key, value.

    Raises:
        Failed: the kernels did something they must not.
    """
    result = exchange(program, folder, problem.request(False, inputs), **options)
    out = result.take_map(problem.value_shape, problem.dtype, problem.channels_last)
    batch, _, height, width = problem.key_shape
    return out, result.take((batch, height, width), problem.statistics)


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    inputs: Sequence[Tensor],
    lse: Tensor,
    **options: str,
) -> tuple[Tensor, ...]:
    """Gradients of query, key, value.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(True, (grad, *inputs), lse)
    result = exchange(program, folder, request, **options)
    shapes = (problem.key_shape, problem.key_shape, problem.value_shape)
    return tuple(result.take_map(s, problem.dtype, problem.channels_last) for s in shapes)


def checked_forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> tuple[Tensor, Tensor]:
    """`forward`, whose log-sum-exp is right."""
    out, lse = forward(program, folder, problem, inputs, **options)
    check_lse(problem, *inputs[:2], lse)
    return out, lse


def check_lse(problem: Problem, query: Tensor, key: Tensor, lse: Tensor) -> None:
    """Within the rounding of sums as long: products over channels, exponentials over a window."""
    query, key = query.double(), key.double()
    if not (query.isfinite().all() and key.isfinite().all()):
        return
    expected = local_scores(query, key, *window(problem)).logsumexp(dim=1)
    products = local_scores(query.abs(), key.abs(), *window(problem)).abs()
    largest = products.masked_fill(products.isinf(), 0.0).max().item()
    roundings = (query.shape[1] + 4) * largest + math.prod(problem.kernel_size)
    assert error(lse, expected) <= roundings * torch.finfo(lse.dtype).eps


def window(problem: Problem) -> tuple:
    """Arguments of the reference after query, key and value."""
    dilation = tuple(min(d, 50) for d in problem.dilation)  # beyond any map; the reference pads
    return problem.kernel_size, dilation, problem.scale, "mask" if problem.mask_border else "zero"


def make_inputs(problem: Problem) -> list[Tensor]:
    shapes = (problem.key_shape, problem.key_shape, problem.value_shape)
    return [torch.randn(shape).to(problem.dtype) for shape in shapes]


def plain(problem: Problem, *maps: Tensor) -> Tensor:
    return reference.local_attention(*maps, *window(problem))


check = checker(checked_forward, backward, plain, make_inputs)
