"""CUDA kernels of local_attention on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.faults import BARRIER, WITHOUT_BARRIER, barriers, faulty_programs, is_caught
from emulation.local_attention import Problem, backward, forward
from emulation.toolchain import build
from harness import check_op, error
from torch import Tensor

from attnops import reference
from attnops.reference.local_attention import local_scores

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


def emulated(
    program: Path, folder: Path, problem: Problem, **options: str
) -> Callable[..., Tensor]:
    """The op of query, key and value as the kernels compute it; checks its log-sum-exp as well."""

    class Emulated(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs: Tensor) -> Tensor:
            out, lse = forward(program, folder, problem, inputs, **options)
            check_lse(problem, *inputs[:2], lse)
            ctx.save_for_backward(*inputs, lse)
            return out

        @staticmethod
        def backward(ctx, grad: Tensor) -> tuple[Tensor, ...]:
            *inputs, lse = ctx.saved_tensors
            return backward(program, folder, problem, grad, inputs, lse, **options)

    return Emulated.apply


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
        lambda *xs: reference.local_attention(*xs, *window(problem)),
        make_inputs(problem) if inputs is None else inputs,
    )


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


# Faults in the kernels: a copy of them in which the environment turns each fault on.

KERNELS = (
    "local_attention/tile.cuh",
    "local_attention/products.cuh",
    "local_attention/kernels.cuh",
    "local_attention/backward_kernels.cuh",
)
FAULTS = {
    "shared index": (
        KERNELS[0],
        "s_channels[vector * plan.plane + position] = gather",
        "s_channels[(vector + FAULT * kStaged) * plan.plane + position] = gather",
    ),
    "global read": (KERNELS[0], "if (count >= kWidth<T>)", "if (count >= kWidth<T> || FAULT)"),
    "global write": (KERNELS[0], "if (pixel < 0) return;", "if (pixel < 0 && !FAULT) return;"),
    "window too wide": (
        KERNELS[1],
        "for (int row = 0; row < plan.kernel_height; ++row)",
        "for (int row = 0; row < plan.kernel_height + 99 * FAULT; ++row)",
    ),
    "thread without barrier": (KERNELS[1], BARRIER, WITHOUT_BARRIER),
}
# More channels than are staged at a time, in parts: it passes every barrier more than once.
PARTS = Problem((1, 20, 6, 9), 21)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("faulty")
    return faulty_programs(folder, "local_attention_driver.cpp", KERNELS, FAULTS)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_copy_without_fault_passes(
    faulty, tmp_path: Path, sanitizer: str, channels_last: bool
) -> None:
    check(faulty(sanitizer), tmp_path, replace(PARTS, channels_last=channels_last))


@pytest.mark.parametrize(
    ("fault", "report"),
    [
        ("shared index", "heap-buffer-overflow"),
        ("global read", "heap-buffer-overflow"),
        ("global write", "heap-buffer-overflow"),
        ("window too wide", "heap-buffer-overflow"),
        ("thread without barrier", r"and waits, but thread \(5, 0, 0\) is at __sync"),
    ],
)
def test_fault_is_reported(faulty, tmp_path: Path, fault: str, report: str) -> None:
    with pytest.raises(Failed, match=report):
        check(faulty("address"), tmp_path, PARTS, ATTNOPS_FAULT=fault)


@pytest.mark.parametrize("barrier", barriers(KERNELS))
def test_missing_barrier_is_a_race(faulty, tmp_path: Path, barrier: str) -> None:
    """Under ThreadSanitizer, in any one order of the threads."""
    run = partial(check, faulty("thread"), tmp_path)
    assert is_caught(run, [PARTS], barrier, "data race", ["forward"])


@pytest.mark.parametrize("barrier", barriers(KERNELS))
def test_missing_barrier_changes_the_result(faulty, tmp_path: Path, barrier: str) -> None:
    """In one of two opposite orders of the threads, without ThreadSanitizer."""
    run = partial(check, faulty("address"), tmp_path)
    assert is_caught(run, [PARTS], barrier, "", ["forward", "reverse"])
