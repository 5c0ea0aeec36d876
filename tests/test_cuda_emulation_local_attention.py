"""CUDA kernels of local_attention on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.faults import BARRIER, barriers, faulty_csrc
from emulation.local_attention import Problem, backward, forward
from emulation.toolchain import build
from harness import check_op
from torch import Tensor

from attnops import reference
from attnops.reference.local_attention import local_scores

WINDOWS = [  # (B, Ck, H, W), Cv, kernel, dilation
    ((1, 3, 4, 5), 2, (1, 1), (1, 1)),
    ((2, 5, 7, 9), 7, (3, 3), (1, 1)),
    ((1, 16, 12, 17), 16, (5, 5), (3, 3)),
    ((1, 4, 9, 20), 9, (7, 7), (1, 1)),
    ((1, 8, 7, 18), 1, (3, 7), (2, 1)),
    ((1, 5, 6, 5), 3, (7, 7), (6, 6)),  # a window larger than the map
    ((1, 6, 1, 33), 5, (5, 5), (4, 4)),
    ((1, 2, 19, 1), 6, (5, 5), (2, 2)),
    ((2, 3, 5, 7), 4, (3, 1), (2, 3)),
    ((1, 7, 4, 21), 2, (5, 3), (1, 11)),  # more residues than are worth having side by side
    ((1, 2, 3, 14), 3, (1, 9), (1, 1)),
    ((1, 2, 8, 6), 2, (7, 11), (1, 1)),  # more taps than threads: several rounds
    ((1, 2, 5, 4), 1, (21, 21), (1, 1)),
    ((1, 2, 3, 3), 2, (3, 5), (1000, 2**40)),  # no neighbour inside, offsets beyond 32 bits
]
PROBLEMS = [
    Problem(*window, mask=mask, channels_last=channels_last, dtype=DTYPES[k % len(DTYPES)])
    for mask, channels_last, shift in (
        (False, False, 0),
        (True, False, 1),
        (False, True, 2),
        (True, True, 3),
    )
    for k, window in enumerate(WINDOWS, start=shift)
]
# Channels that fill vectors and stages, and those that do not; off a 16-byte boundary.
PROBLEMS += [
    Problem((1, key, 5, 11), value, (3, 3), (1, 2), channels_last=inner, dtype=dtype, misalign=off)
    for dtype, key, value in (
        (torch.float32, 32, 20),
        (torch.float32, 19, 36),
        (torch.bfloat16, 64, 40),
        (torch.float16, 35, 64),
    )
    for inner, off in ((False, 0), (True, 0), (True, 1))
]
# Small tiles.
PROBLEMS += [
    Problem((1, 4, 14, 37), 4, kernel, (1, 2), channels_last=inner, multiprocessors=132)
    for kernel in ((3, 3), (5, 5), (7, 7))
    for inner in (False, True)
]
ORDERS = ("forward", "reverse", "11")


def emulated(program: Path, folder: Path, problem: Problem, **options: str) -> Callable[..., Tensor]:
    """The op of query, key and value as the kernels compute it; checks its log-sum-exp as well."""

    class Emulated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            out, lse = forward(program, folder, problem, inputs, **options)
            if all(x.isfinite().all() for x in inputs):
                query, key, _ = (x.double() for x in inputs)
                scores = local_scores(query, key, *window(problem))
                torch.testing.assert_close(lse, scores.logsumexp(dim=1).to(lse.dtype))
            ctx.save_for_backward(*inputs, lse)
            return out

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
            *inputs, lse = ctx.saved_tensors
            return backward(program, folder, problem, grad, inputs, lse, **options)

    return Emulated.apply


def window(problem: Problem) -> tuple:
    """Arguments of the reference after query, key and value."""
    border = "mask" if problem.mask else "zero"
    return problem.kernel, problem.dilation, problem.scale, border


def make_inputs(problem: Problem) -> list[Tensor]:
    shapes = (problem.key_shape, problem.key_shape, problem.value_shape)
    return [torch.randn(shape).to(problem.dtype) for shape in shapes]


def check(program: Path, folder: Path, problem: Problem, **options: str) -> None:
    """Output and gradients of `problem` agree with the reference."""
    bounded = tuple(min(d, 50) for d in problem.dilation)  # the reference pads by it

    def plain(*inputs: Tensor) -> Tensor:
        return reference.local_attention(*inputs, *window(replace(problem, dilation=bounded)))

    check_op(emulated(program, folder, problem, **options), plain, make_inputs(problem))


def describe(problem: Problem) -> str:
    fields = [str(problem.dtype)[6:], "mask" if problem.mask else "zero"]
    fields += ["channels_last" if problem.channels_last else "contiguous"]
    shapes = (problem.key_shape, problem.kernel, problem.dilation)
    fields += ["x".join(map(str, shape)) for shape in shapes]
    return "_".join([*fields, f"v{problem.value_channels}", f"off{problem.misalign}"])


@pytest.fixture(scope="module")
def attention() -> Path:
    return build("local_attention_driver.cpp", "address")


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_matches_the_reference(attention: Path, tmp_path: Path, k: int) -> None:
    check(attention, tmp_path, PROBLEMS[k], order=ORDERS[k % len(ORDERS)])
