"""Sends strip_conv problems to the emulated CUDA kernels (strip_conv_driver.cpp)."""

from __future__ import annotations

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

    `strips` are pairs (length of the row, length of the column). Inputs are x, the weights, and the
    biases of all kernels if it is `biased`.
    """

    shape: tuple[int, int, int, int]
    kernel_size: tuple[int, int] = (3, 3)
    strips: tuple[tuple[int, int], ...] = ((5, 5),)
    biased: bool = True

    @property
    def sides(self) -> list[tuple[int, int]]:
        """Of all kernels."""
        strips = [side for row, column in self.strips for side in ((1, row), (column, 1))]
        return [self.kernel_size, *strips]

    @property
    def parameter_shapes(self) -> list[tuple[int, ...]]:
        channels = self.shape[1]
        weights = [(channels, 1, *side) for side in self.sides]
        return weights + [(channels,)] * (len(weights) * self.biased)

    def request(
        self, backward: bool, maps: Sequence[Tensor], parameters: Sequence[Tensor]
    ) -> bytes:
        sides = [strip[k] for k in (0, 1) for strip in self.strips]
        numbers = (*self.shape, *self.kernel_size, len(self.strips), self.biased, *sides)
        header = self.header(backward, *numbers)
        data = [map_to_bytes(x, self.channels_last) for x in maps]
        return b"".join([header, *data, *map(to_bytes, parameters)])


def forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> Tensor:
    """out of the inputs.

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
    """Gradients of the inputs.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(True, (grad, inputs[0]), inputs[1:])
    result = exchange(program, folder, request, **options)
    grad_x = result.take_map(problem.shape, problem.dtype, problem.channels_last)
    return grad_x, *(result.take(shape, problem.dtype) for shape in problem.parameter_shapes)


def plain(problem: Problem, x: Tensor, *parameters: Tensor) -> Tensor:
    """The reference."""
    count = len(problem.sides)
    biases = parameters[count:] or [None] * count
    pairs = list(zip(parameters[:count], biases, strict=True))
    return reference.strip_conv(x, *pairs[0], list(zip(pairs[1::2], pairs[2::2], strict=True)))


def make_inputs(problem: Problem) -> list[Tensor]:
    taps = sum(h * w for h, w in problem.sides)
    shapes = problem.parameter_shapes
    inputs = [torch.randn(s) / (taps**0.5 if len(s) == 4 else 1) for s in shapes]
    return [t.to(problem.dtype) for t in (torch.randn(problem.shape), *inputs)]


check = checker(forward, backward, plain, make_inputs)
