"""CUDA kernels of strip_conv on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.faults import BARRIER, WITHOUT_BARRIER, barriers, faulty_programs, is_caught
from emulation.strip_conv import Problem, backward, forward
from emulation.toolchain import build
from harness import check_op
from torch import Tensor

from attnops import reference

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


def emulated(
    program: Path, folder: Path, problem: Problem, **options: str
) -> Callable[..., Tensor]:
    """The op of x, taps, biases as the kernels compute it."""

    class Emulated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            ctx.save_for_backward(*inputs)
            return forward(program, folder, problem, inputs, **options)

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
            return backward(program, folder, problem, grad, ctx.saved_tensors, **options)

    return Emulated.apply


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


def check(
    program: Path,
    folder: Path,
    problem: Problem,
    inputs: Sequence[Tensor] | None = None,
    **options: str,
) -> None:
    """Output and gradients of `problem` agree with the reference."""
    check_op(
        emulated(program, folder, problem, **options),
        lambda *tensors: plain(problem, *tensors),
        make_inputs(problem) if inputs is None else inputs,
    )


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
    problem = Problem((1, 4, 6, 7), (3, 3), ((5, 5), (3, 3)), channels_last=channels_last)
    x, taps, biases = make_inputs(problem)
    check(strips, tmp_path, problem, (x, taps, torch.zeros_like(biases)))


@pytest.mark.parametrize("channels_last", [False, True])
def test_special_values_reach_their_crosses_alone(
    strips: Path, tmp_path: Path, channels_last: bool
) -> None:
    problem = Problem((2, 3, 20, 30), channels_last=channels_last, multiprocessors=132)
    x, taps, biases = make_inputs(problem)
    x[0, 0, 4, 5] = torch.nan
    x[1, 1, 19, 29] = torch.inf
    out = forward(strips, tmp_path, problem, (x, taps, biases), order="17")
    expected = plain(problem, x, taps, biases)
    assert torch.equal(out.isfinite(), expected.isfinite())
    torch.testing.assert_close(out[:, 2], expected[:, 2], rtol=1e-4, atol=1e-5)

    leaves = [t.requires_grad_() for t in (x, taps, biases)]
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
        if first.dim() == 4:
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
    rows, columns = ([strip[k] for strip in strips_of] for k in (0, 1))
    reason = _refuse_strip_conv(*inputs, list(kernel_size), rows, columns)
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


# Faults in the kernels: a copy of them in which the environment turns each fault on.

KERNELS = (
    "strip_conv/tile.cuh",
    "strip_conv/kernels.cuh",
    "strip_conv/backward_kernels.cuh",
)
FAULTS = {
    "global read": (KERNELS[0], "inside ? widen(p_map", "inside || FAULT ? widen(p_map"),
    "row too long": (
        KERNELS[0],
        "for (int t = 0; t < taps; ++t, s_in",
        "for (int t = 0; t < taps + 9999 * FAULT; ++t, s_in",
    ),
    "global write": (
        KERNELS[1],
        "if (tile.y + row + j < plan.height)",
        "if (tile.y + row + j < plan.height || FAULT)",
    ),
    "thread without barrier": (KERNELS[1], BARRIER, WITHOUT_BARRIER),
}
SMALL = Problem((1, 3, 10, 9), (3, 3), ((3, 5), (7, 3)))
# Together they pass every barrier where it matters: two strips, none, sums in several rounds.
WITH_BARRIERS = (
    SMALL,
    replace(SMALL, channels_last=True),
    Problem((1, 1, 9, 21), (3, 3), ()),
    Problem((1, 1, 3, 12), (11, 11), ((3, 3),)),
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("faulty")
    return faulty_programs(folder, "strip_conv_driver.cpp", KERNELS, FAULTS)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_copy_without_fault_passes(faulty, tmp_path: Path, sanitizer: str) -> None:
    for problem in WITH_BARRIERS:
        check(faulty(sanitizer), tmp_path, problem)


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("global read", "heap-buffer-overflow"),
        ("row too long", "heap-buffer-overflow"),
        ("global write", "heap-buffer-overflow"),
        ("thread without barrier", r"and waits, but thread \(5, 0, 0\) is at __sync"),
    ],
)
def test_fault_is_reported(faulty, tmp_path: Path, fault: str, report: str) -> None:
    with pytest.raises(Failed, match=report):
        check(faulty("address"), tmp_path, SMALL, ATTNOPS_FAULT=fault)


@pytest.mark.parametrize("barrier", barriers(KERNELS))
def test_missing_barrier_is_a_race(faulty, tmp_path: Path, barrier: str) -> None:
    """Under ThreadSanitizer, in any one order of the threads."""
    run = partial(check, faulty("thread"), tmp_path)
    assert is_caught(run, WITH_BARRIERS, barrier, "data race", ["forward"])


@pytest.mark.parametrize("barrier", barriers(KERNELS))
def test_missing_barrier_changes_the_result(faulty, tmp_path: Path, barrier: str) -> None:
    """In one of two opposite orders of the threads, without ThreadSanitizer."""
    run = partial(check, faulty("address"), tmp_path)
    assert is_caught(run, WITH_BARRIERS, barrier, "", ["forward", "reverse"])
