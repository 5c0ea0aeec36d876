"""CUDA kernels of local_attention on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.local_attention import Problem, backward, check, forward, make_inputs
from emulation.toolchain import build

WINDOWS = [  # (B, Ck, H, W), Cv, kernel_size, dilation
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
    ((1, 2, 8, 6), 2, (7, 11), (1, 1)),  # more neighbours than threads: several rounds
    ((1, 2, 5, 4), 1, (21, 21), (1, 1)),
    ((1, 2, 3, 3), 2, (3, 5), (1000, 2**40)),  # no neighbour inside, offsets beyond 32 bits
]
PROBLEMS = [
    Problem(*window, mask_border=mask, channels_last=channels_last, dtype=DTYPES[k % len(DTYPES)])
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
    Problem((1, 4, 14, 37), 4, kernel_size, (1, 2), channels_last=inner, multiprocessors=132)
    for kernel_size in ((3, 3), (5, 5), (7, 7))
    for inner in (False, True)
]
ORDERS = ("forward", "reverse", "11")


def describe(problem: Problem) -> str:
    border = "mask" if problem.mask_border else "zero"
    window = (problem.key_shape, problem.kernel_size, problem.dilation)
    return problem.describe(border, *window, f"v{problem.value_channels}")


@pytest.fixture(scope="module")
def attention() -> Path:
    return build("local_attention_driver.cpp", "address")


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_matches_the_reference(attention: Path, tmp_path: Path, k: int) -> None:
    check(attention, tmp_path, PROBLEMS[k], order=ORDERS[k % len(ORDERS)])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("mask", [False, True])
def test_special_values_reach_their_windows_alone(
    attention: Path, tmp_path: Path, mask: bool, channels_last: bool
) -> None:
    layout = {"channels_last": channels_last}
    problem = Problem((2, 4, 9, 21), 3, (3, 3), (2, 2), mask_border=mask, **layout)
    query, key, value = make_inputs(problem)
    query[0, 1, 2, 3] = torch.nan
    key[0, 2, 7, 12] = torch.nan
    key[1, 0, 0, 0] = torch.inf
    value[1, 0, 5, 6] = torch.nan
    value[1, 2, 1, 20] = torch.inf
    check(attention, tmp_path, problem, (query, key, value), order="17")


@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("factor", [8, 40])
def test_large_scores(attention: Path, tmp_path: Path, factor: int, mask: bool) -> None:
    """Exponentials beyond float32; gradients where the weights are all but 0 and 1."""
    problem = Problem((3, 8, 9, 12), 4, (3, 3), (2, 2), scale=1.0, mask_border=mask)
    query, key, value = make_inputs(problem)
    check(attention, tmp_path, problem, (query * factor, key * factor, value))


@pytest.mark.parametrize("channels_last", [False, True])
def test_tiles_and_orders_do_not_change_a_bit(
    attention: Path, tmp_path: Path, channels_last: bool
) -> None:
    problem = Problem((1, 20, 13, 37), 9, (5, 5), (1, 2), channels_last=channels_last)
    inputs = make_inputs(problem)
    grad = torch.randn(problem.value_shape)
    found = []
    for multiprocessors, order in ((1, "forward"), (132, "3")):
        tiled = replace(problem, multiprocessors=multiprocessors)
        out, lse = forward(attention, tmp_path, tiled, inputs, order=order)
        grads = backward(attention, tmp_path, tiled, grad, inputs, lse, order=order)
        found.append((out, lse, *grads))
    for first, second in zip(*found, strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize(
    ("kernel_size", "fits"),
    [((63, 7), True), ((7, 63), True), ((1, 63), True), ((65, 1), False), ((21, 23), False)],
)
def test_windows_are_refused_by_library_and_python_alike(
    attention: Path, tmp_path: Path, kernel_size: tuple[int, int], fits: bool
) -> None:
    from attnops._backends.cuda import _refuse_local_attention

    problem = Problem((1, 2, 2, 3), 1, kernel_size)
    reason = _refuse_local_attention(*make_inputs(problem), list(kernel_size))
    if fits:
        assert reason == "it runs CUDA tensors only, got cpu"
        check(attention, tmp_path, problem)
        return
    assert "windows of up to 63 an axis and 441 in all" in reason
    with pytest.raises(Failed, match="unsupported window"):
        check(attention, tmp_path, problem)


def test_plans_keep_the_limits() -> None:
    done = toolchain.run(build("local_attention_plans.cpp", "address"))
    assert done.returncode == 0, done.stdout + done.stderr
