"""Sends nmf problems to the emulated CUDA kernels (nmf_driver.cpp)."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from attnops import reference
from attnops.nmf import RECORD_ALL, RECORD_LAST, RECORD_NOTHING

from .exchange import Form, checker, exchange, to_bytes


@dataclass(frozen=True)
class Problem(Form):
    """An nmf problem `(B, D, N, R)`; `channels_last`: x has its channels inner."""

    shape: tuple[int, int, int, int]
    steps: int = 2
    one_step: bool = False
    inv_t: float = 0.8

    @property
    def eps(self) -> float:
        """Large enough that plain half precision, which sets the budget, does not divide by 0."""
        return 1e-6 if self.dtype == torch.float32 else 1e-2

    def sizes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of the bases and of the coefficients."""
        batch, channels, positions, rank = self.shape
        return (batch, channels, rank), (batch, positions, rank)

    def request(self, backward: bool, record: int, tensors: Sequence[Tensor]) -> bytes:
        header = self.header(backward, *self.shape, self.steps, record)
        header += struct.pack("<2d", self.inv_t, self.eps)
        x = tensors[0].mT if self.channels_last else tensors[0]
        return b"".join([header, *map(to_bytes, [x, *tensors[1:]])])


def run_forward(
    program: Path,
    folder: Path,
    problem: Problem,
    inputs: Sequence[Tensor],
    record: int,
    **options: str,
) -> list[Tensor]:
    """Bases, coefficients, past bases, past coefficients.

    Raises:
        Failed: the kernels did something they must not.
    """
    request = problem.request(False, record, inputs)
    result = exchange(program, folder, request, **options)
    kept_bases, kept_coef = {
        RECORD_NOTHING: (0, 0),
        RECORD_LAST: (1, 1),
        RECORD_ALL: (problem.steps, problem.steps + 2),
    }[record]
    bases, coef = problem.sizes()
    found = [result.take(shape, problem.dtype) for shape in (bases, coef)]
    past = ((kept_bases, *bases), (kept_coef, *coef))
    return found + [result.take(shape, torch.float32) for shape in past]


def forward(
    program: Path, folder: Path, problem: Problem, inputs: Sequence[Tensor], **options: str
) -> tuple[Tensor, Tensor, Tensor]:
    """Both results, one after the other (of one_step zeros and the coefficients), and the past."""
    record = RECORD_LAST if problem.one_step else RECORD_ALL
    found, coef, *past = run_forward(program, folder, problem, inputs, record, **options)
    return join(problem, found, coef), *past


def backward(
    program: Path,
    folder: Path,
    problem: Problem,
    grad: Tensor,
    inputs: Sequence[Tensor],
    *past: Tensor,
    **options: str,
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the bases.

    Raises:
        Failed: the kernels did something they must not.
    """
    bases, coef = problem.sizes()
    grads = grad.split([math.prod(bases), math.prod(coef)])
    record = RECORD_LAST if problem.one_step else RECORD_ALL
    request = problem.request(True, record, [*inputs, *grads, *past])
    result = exchange(program, folder, request, **options)
    batch, channels, positions, _ = problem.shape
    if problem.channels_last:
        grad_x = result.take((batch, positions, channels), problem.dtype).mT
    else:
        grad_x = result.take((batch, channels, positions), problem.dtype)
    grad_bases = result.take(bases, problem.dtype)
    return grad_x, torch.zeros_like(grad_bases) if problem.one_step else grad_bases


def join(problem: Problem, bases: Tensor, coef: Tensor) -> Tensor:
    return torch.cat([(0 * bases if problem.one_step else bases).flatten(), coef.flatten()])


def plain(problem: Problem, x: Tensor, bases: Tensor) -> Tensor:
    """The reference's results, as `forward` joins them."""
    grad = "one_step" if problem.one_step else "unrolled"
    found, coef = reference.nmf(x, bases, problem.steps, problem.inv_t, problem.eps, grad)
    return join(problem, bases if problem.one_step else found, coef)


def make_inputs(problem: Problem) -> list[Tensor]:
    batch, channels, positions, rank = problem.shape
    x = torch.randn(batch, channels, positions).relu()
    bases = torch.nn.functional.normalize(torch.rand(batch, channels, rank), dim=1)
    return [t.to(problem.dtype) for t in (x, bases)]


check = checker(forward, backward, plain, make_inputs)
