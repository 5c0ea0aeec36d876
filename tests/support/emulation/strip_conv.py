"""Sends strip_conv problems to the emulated CUDA kernels (strip_conv_driver.cpp)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from .exchange import Form, exchange, map_to_bytes, to_bytes


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
