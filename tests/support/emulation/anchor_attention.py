"""Sends anchor attention problems to the emulated CUDA kernels (anchor_attention_driver.cpp)."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnops import reference

from .exchange import Form, checker, exchange, to_bytes


@dataclass(frozen=True)
class Problem(Form):
    """An anchor attention problem `(B, Ck, Cv, N, S)`; `channels_last`: maps have their channels
    inner; `slab_tiles` of 128 positions have their probabilities kept at a time.
    """

    shape: tuple[int, int, int, int, int]
    bias: bool = False
    scale: float = 0.4
    slab_tiles: int = 512

    def map_bytes(self, x: Tensor) -> bytes:
        return to_bytes(x.mT if self.channels_last else x)

    def request(self, backward: bool, tensors: Sequence[Tensor], *more: bytes) -> bytes:
        header = self.header(backward, *self.shape, self.bias, self.slab_tiles)
        query, *anchors = tensors
        inputs = [self.map_bytes(query), *map(to_bytes, anchors)]
        return b"".join([header, struct.pack("<d", self.scale), *inputs, *more])


def forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> tuple[Tensor, Tensor]:
    """The output, and the log of the sum of every position's exponentials.

    Raises:
        Failed: the kernels did something they must not.
    """
    result = exchange(program, folder, problem.request(False, inputs), **options)
    batch, _, channels, positions, _ = problem.shape
    out = _take_map(problem, result, (batch, channels, positions))
    return out, result.take((batch, positions), torch.float32)


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    inputs: Sequence[Tensor],
    lse: Tensor,
    **options: str,
) -> tuple[Tensor, ...]:
    """Gradients of all inputs.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(True, inputs, problem.map_bytes(grad), to_bytes(lse))
    result = exchange(program, folder, request, **options)
    query, *anchors = inputs
    found = [_take_map(problem, result, query.shape)]
    return *found, *(result.take(x.shape, problem.dtype) for x in anchors)


def _take_map(problem: Problem, result, shape: Sequence[int]) -> Tensor:
    if not problem.channels_last:
        return result.take(shape, problem.dtype)
    batch, channels, positions = shape
    return result.take((batch, positions, channels), problem.dtype).mT


def plain(problem: Problem, query: Tensor, key: Tensor, value: Tensor, *bias: Tensor) -> Tensor:
    return reference.anchor_attention(
        query, key, value, problem.scale, bias=bias[0] if bias else None
    )


def make_inputs(problem: Problem) -> list[Tensor]:
    batch, key_channels, value_channels, positions, anchors = problem.shape
    shapes = [
        (batch, key_channels, positions),
        (batch, key_channels, anchors),
        (batch, value_channels, anchors),
    ]
    if problem.bias:
        shapes.append((batch, anchors))
    return [torch.randn(shape).to(problem.dtype) for shape in shapes]


check = checker(forward, backward, plain, make_inputs)
