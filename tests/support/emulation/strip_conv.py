"""Sends strip_conv problems to the emulated CUDA kernels (strip_conv_driver.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnops import reference

from .exchange import Form, checker, exchange, map_to_bytes, to_bytes


@dataclass(frozen=True)
class Problem(Form):
    """A strip_conv problem; many multiprocessors make tiles small.

    `strips` are pairs (length of the row, length of the column).
    """

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int] = (3, 3)
    strips: tuple[tuple[int, int], ...] = ((5, 5),)

    @property
    def taps_shape(self) -> tuple[int, int]:
        return self.shape[1], math.prod(self.kernel_size) + sum(map(sum, self.strips))

    @property
    def biases_shape(self) -> tuple[int, int]:
        return self.shape[1], 1 + 2 * len(self.strips)

    def request(
        self, backward: bool, maps: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> bytes:
        sides = [strip[k] for k in (0, 1) for strip in self.strips]
        numbers = (*self.shape, *self.kernel_size, len(self.strips), *sides)
        header = self.header(backward, *numbers)
        data = [map_to_bytes(x, self.channels_last) for x in maps]
        return b"".join([header, *data, *map(to_bytes, parameters)])


def forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> Tensor:
    """out of x, taps, biases.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(False, inputs[:1], inputs[1:])
    result = exchange(program, folder, request, **options)
    return result.take_map(problem.shape, problem.dtype, problem.channels_last)


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    inputs: Sequence[Tensor],
    **options: str,
) -> tuple[Tensor, ...]:
    """Gradients of x, taps, biases.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(True, (grad, inputs[0]), inputs[1:])
    result = exchange(program, folder, request, **options)
    grad_x = result.take_map(problem.shape, problem.dtype, problem.channels_last)
    parameters = (problem.taps_shape, problem.biases_shape)
    return grad_x, *(result.take(shape, problem.dtype) for shape in parameters)


def plain(problem: Problem, x: Tensor, taps: Tensor, biases: Tensor) -> Tensor:
    """The reference, of packed parameters."""
    sides = [problem.kernel_size]
    for row, column in problem.strips:
        sides += [(1, row), (column, 1)]
    weights = taps.split([h * w for h, w in sides], dim=1)
    pairs = [
        (weight.reshape(-1, 1, *side), shift)
        for weight, side, shift in zip(weights, sides, biases.unbind(1), strict=True)
    ]
    return reference.strip_conv(x, *pairs[0], list(zip(pairs[1::2], pairs[2::2], strict=True)))


def make_inputs(problem: Problem) -> list[Tensor]:
    taps = torch.randn(problem.taps_shape) / problem.taps_shape[1] ** 0.5
    inputs = (torch.randn(problem.shape), taps, torch.randn(problem.biases_shape))
    return [t.to(problem.dtype) for t in inputs]


check = checker(forward, backward, plain, make_inputs)
