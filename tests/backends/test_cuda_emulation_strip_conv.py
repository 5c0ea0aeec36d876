"""CUDA kernels of strip_conv on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.strip_conv import Problem, backward, check, forward, make_inputs, plain
from emulation.toolchain import build

pytestmark = pytest.mark.usefixtures("without_onednn")
SEGNEXT = ((7, 7), (11, 11), (21, 21))
KERNELS_AND_MAPS = [  # (B, C, H, W), kernel_size, strips
    ((2, 5, 9, 11), (5, 5), SEGNEXT),  # maps smaller than most kernels
    ((1, 9, 24, 37), (5, 5), SEGNEXT),
    ((1, 3, 3, 2), (7, 7), ((31, 31), (3, 3))),  # smaller than all
    ((2, 3, 12, 10), (3, 3), ()),
    ((1, 1, 1, 40), (5, 5), ((3, 3),)),
    ((1, 7, 40, 1), (3, 5), ((1, 1), (9, 9))),
    ((1, 18, 33, 20), (1, 1), ((5, 9), (15, 3))),  # rows and columns of different lengths
    ((1, 1, 1, 1), (1, 1), ((1, 1),)),
    ((1, 2, 5, 70), (3, 1), ((21, 1),)),
    ((1, 2, 70, 5), (1, 11), ((1, 21),) * 8),
]
PROBLEMS = [
    Problem(*case, channels_last=inner, dtype=DTYPES[(k + shift) % len(DTYPES)], misalign=k % 2)
    for inner, shift in ((False, 0), (True, 1), (False, 2), (True, 3))
    for k, case in enumerate(KERNELS_AND_MAPS)
]
# Small tiles.
PROBLEMS += [
    Problem((2, channels, 26, 19), (5, 5), SEGNEXT, channels_last=inner, multiprocessors=132)
    for inner in (False, True)
    for channels in (1, 6, 40)
]
# Blocks that add up the sums of several tiles.
PROBLEMS += [
    Problem((3, 9, 7, 9), (5, 5), SEGNEXT),
    Problem((3, 40, 7, 9), (5, 5), SEGNEXT, channels_last=True),
]
ORDERS = ("forward", "reverse", "11")


def describe(problem: Problem) -> str:
    return problem.describe(problem.shape, problem.kernel_size, *problem.strips)


@pytest.fixture(scope="module")
def strips() -> Path:
    return build("strip_conv_driver.cpp", "address")


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_matches_the_reference(strips: Path, tmp_path: Path, k: int) -> None:
    check(strips, tmp_path, PROBLEMS[k], order=ORDERS[k % len(ORDERS)])


@pytest.mark.parametrize("channels_last", [False, True])
def test_without_biases(strips: Path, tmp_path: Path, channels_last: bool) -> None:
    sides = ((5, 5), (3, 3))
    problem = Problem((1, 4, 6, 7), (3, 3), sides, biased=False, channels_last=channels_last)
    check(strips, tmp_path, problem)


@pytest.mark.parametrize("channels_last", [False, True])
def test_special_values_reach_their_crosses_alone(
    strips: Path, tmp_path: Path, channels_last: bool
) -> None:
    problem = Problem((2, 3, 20, 30), channels_last=channels_last, multiprocessors=132)
    inputs = make_inputs(problem)
    inputs[0][0, 0, 4, 5] = torch.nan
    inputs[0][1, 1, 19, 29] = torch.inf
    out = forward(strips, tmp_path, problem, inputs, order="17")
    expected = plain(problem, *inputs)
    assert torch.equal(out.isfinite(), expected.isfinite())
    torch.testing.assert_close(out[:, 2], expected[:, 2], rtol=1e-4, atol=1e-5)

    leaves = [t.requires_grad_() for t in inputs]
    grad = torch.randn(problem.shape)
    grad[0, 2, 0, 29] = torch.nan
    found = backward(strips, tmp_path, problem, grad, [t.detach() for t in leaves], order="17")
    wanted = torch.autograd.grad(plain(problem, *leaves), leaves, grad)
    for actual, oracle in zip(found, wanted, strict=True):
        assert torch.equal(actual.isfinite(), oracle.isfinite())


@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_and_orders_do_not_change_a_bit(
    strips: Path, tmp_path: Path, channels_last: bool
) -> None:
    """Of maps; sums over positions depend on the tiles, but not on the order of threads."""
    problem = Problem((1, 5, 23, 37), (5, 5), SEGNEXT, channels_last=channels_last)
    inputs = make_inputs(problem)
    grad = torch.randn(problem.shape)
    found = []
    for multiprocessors, order in ((1, "forward"), (132, "3"), (132, "reverse")):
        tiled = replace(problem, multiprocessors=multiprocessors)
        out = forward(strips, tmp_path, tiled, inputs, order=order)
        found.append((out, *backward(strips, tmp_path, tiled, grad, inputs, order=order)))
    for first, second, third in zip(*found, strict=True):
        assert torch.equal(second, third)
        if first.shape == problem.shape:
            assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kernel_size", "strips_of", "fits"),
    [
        ((11, 11), ((63, 63),) * 8, True),
        ((1, 1), ((63, 1), (1, 63)), True),
        ((13, 1), (), False),
        ((1, 13), (), False),
        ((1, 1), ((65, 1),), False),
        ((1, 1), ((1, 65),), False),
        ((1, 1), ((1, 1),) * 9, False),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kernels_are_refused_by_library_and_python_alike(
    strips: Path, tmp_path: Path, kernel_size, strips_of, fits: bool, dtype: torch.dtype
) -> None:
    from attnops._backends.cuda import _refuse_strip_conv

    problem = Problem((1, 2, 2, 3), kernel_size, strips_of, dtype=dtype)
    inputs = make_inputs(problem)
    weights = inputs[1 : 2 + 2 * len(strips_of)]
    reason = _refuse_strip_conv(inputs[0], weights, [], [])
    if fits:
        assert reason == "it runs CUDA tensors only, got cpu"
        check(strips, tmp_path, problem, inputs)
        return
    assert "local kernels of up to 11 an axis and 8 strips of up to 63" in reason
    with pytest.raises(Failed, match="unsupported kernels"):
        check(strips, tmp_path, problem, inputs)


def test_plans_keep_the_limits() -> None:
    done = toolchain.run(build("strip_conv_plans.cpp", "address"))
    assert done.returncode == 0, done.stdout + done.stderr
