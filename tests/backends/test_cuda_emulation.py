"""CUDA kernels on the host, under sanitizers, against PyTorch; faults in them must be caught."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from emulation import toolchain
from emulation.exchange import DTYPES, Failed
from emulation.faults import BARRIER, WITHOUT_BARRIER, barriers, faulty_programs, is_caught
from emulation.pyramid_pool import Problem, backward, forward
from emulation.toolchain import build
from harness import check_results
from torch import Tensor

KERNELS = ("pyramid_pool/kernels.cuh", "pyramid_pool/backward_kernels.cuh")

# The kernels against PyTorch.

SHAPES = (
    (1, 3, 13, 17),  # nothing divides
    (2, 8, 16, 24),  # everything does
    (1, 2, 1, 9),
    (3, 1, 7, 1),
    (1, 5, 3, 4),  # smaller than most grids
    (1, 16, 65, 33),
    (1, 3, 200, 160),  # planes large enough to be shared by blocks
    (1, 1, 4, 1100),  # rows longer than a block of threads
)
PROBLEMS = [
    Problem(shape, use_max=use_max, channels_last=channels_last, dtype=DTYPES[k % len(DTYPES)])
    for use_max in (False, True)
    for channels_last in (False, True)
    for k, shape in enumerate(SHAPES, start=use_max + 2 * channels_last)
] + [
    Problem((2, 16, 8, 24), use_max=m, channels_last=c, dtype=dtype, misalign=misalign)
    for m in (False, True)
    for c in (False, True)
    for dtype in DTYPES
    for misalign in (0, 1)
]
PROBLEMS += [
    Problem((1, 2, 9, 70), sizes, use_max, channels_last=channels_last)
    for sizes in ((64,), (5,), (1, 2, 3, 6), (4, 4, 4), (1,) * 15 + (49,), tuple(range(1, 11)))
    for use_max, channels_last in ((False, False), (True, True))
]
PROBLEMS += [
    Problem((2, 24, 30, 31), use_max=use_max, channels_last=channels_last, multiprocessors=count)
    for use_max in (False, True)
    for channels_last in (False, True)
    for count in (1, 132)
]
# More channels than a tile holds, the last tile not full.
PROBLEMS += [
    Problem((1, channels, 5, 6), use_max=use_max, channels_last=True)
    for use_max in (False, True)
    for channels in (300, 301)
]
ORDERS = ("forward", "reverse", "11")


@pytest.fixture(scope="module")
def pool() -> Path:
    return build("pyramid_pool_driver.cpp", "address")


def pooled(x: Tensor, problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Every level by PyTorch, and for max where it found the maxima."""
    if not problem.use_max:
        levels = [F.adaptive_avg_pool2d(x, n).flatten(2) for n in problem.sizes]
        return torch.cat(levels, 2), None
    maxima = [F.adaptive_max_pool2d(x, n, return_indices=True) for n in problem.sizes]
    return (
        torch.cat([value.flatten(2) for value, _ in maxima], 2),
        torch.cat([index.flatten(2) for _, index in maxima], 2).int(),
    )


def make_input(problem: Problem) -> Tensor:
    """Random; for max on a coarse grid, so that there are many ties."""
    x = torch.randn(problem.shape)
    return ((x * 2).round() / 2 if problem.use_max else x).to(problem.dtype)


def check(
    program: Path, folder: Path, problem: Problem, x: Tensor | None = None, **options: str
) -> None:
    """Forward and backward of `problem` agree with PyTorch."""
    x = make_input(problem) if x is None else x
    expected, argmax = pooled(x.double(), problem)
    grad = torch.randn(expected.shape).to(x.dtype)
    out, indices = forward(program, folder, problem, x, **options)
    if problem.use_max:
        torch.testing.assert_close(indices, argmax)
        torch.testing.assert_close(out.double(), expected, rtol=0, atol=0, equal_nan=True)
    grad_x = backward(program, folder, problem, grad, argmax, **options)
    check_results([out, grad_x], lambda x: pooled(x, problem)[0], [x], grad)


def describe(problem: Problem) -> str:
    reduce = "max" if problem.use_max else "mean"
    return problem.describe(reduce, problem.shape, "-".join(map(str, problem.sizes)))


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_pyramid_pool_matches_pytorch(pool: Path, tmp_path: Path, k: int) -> None:
    problem = PROBLEMS[k]
    check(pool, tmp_path, problem, order=ORDERS[k % len(ORDERS)])


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("use_max", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pyramid_pool_passes_on_special_values(
    pool: Path, tmp_path: Path, value: float, use_max: bool, channels_last: bool
) -> None:
    problem = Problem((2, 3, 11, 13), use_max=use_max, channels_last=channels_last)
    x = make_input(problem)
    x.view(-1)[5::29] = value
    x[0, 0] = value  # bins with nothing else: which one counts as the maximum?
    check(pool, tmp_path, problem, x, order="17")


@pytest.mark.parametrize("channels_last", [False, True])
def test_foreign_argmax_writes_nothing(pool: Path, tmp_path: Path, channels_last: bool) -> None:
    problem = Problem((1, 2, 4, 5), (2,), use_max=True, channels_last=channels_last)
    argmax = torch.tensor([-1, 20, 2**31 - 1, -(2**31)], dtype=torch.int32).repeat(2, 1)
    grad_x = backward(pool, tmp_path, problem, torch.ones(1, 2, 4), argmax)
    assert torch.equal(grad_x, torch.zeros(problem.shape))


def test_repeated_runs_are_bitwise_equal(pool: Path, tmp_path: Path) -> None:
    for channels_last in (False, True):
        problem = Problem((1, 16, 65, 33), channels_last=channels_last)
        x = make_input(problem)
        first, _ = forward(pool, tmp_path, problem, x)
        second, _ = forward(pool, tmp_path, problem, x, order="3")
        assert torch.equal(first, second)


def test_launch_configurations_keep_the_limits() -> None:
    done = toolchain.run(build("pyramid_pool_schedules.cpp", "address"))
    assert done.returncode == 0, done.stdout + done.stderr


# Faults in the kernels: a copy of them in which the environment turns each fault on.

FAULTS = {
    "shared index": (
        KERNELS[0],
        "(s_pieces + piece * tile_channels + lane * kVec) =",
        "(s_pieces + piece * tile_channels + lane * kVec + FAULT) =",
    ),
    "global read": (
        KERNELS[0],
        "p_x += plane * rows.size * width;",
        "p_x += plane * rows.size * width + FAULT;",
    ),
    "global write": (
        KERNELS[0],
        "p_out[plane * levels.cells + s] =",
        "p_out[plane * levels.cells + s + FAULT] =",
    ),
    "negative index": (
        KERNELS[1],
        "p_grad_x += plane * rows.size * width;",
        "p_grad_x += plane * rows.size * width - FAULT;",
    ),
    "thread without barrier": (KERNELS[1], BARRIER, WITHOUT_BARRIER),
}
CONTIGUOUS = Problem((1, 3, 12, 17))
CHANNELS_LAST = Problem((1, 8, 12, 17), channels_last=True, misalign=1)
# Together they pass every barrier: long rows in rounds, shared planes, and channels_last.
WITH_BARRIERS = (
    Problem((1, 1, 56, 301), multiprocessors=1),
    Problem((1, 8, 13, 17), channels_last=True),
    Problem((1, 1, 56, 301), multiprocessors=4),
)


@pytest.fixture(scope="module")
def faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("faulty")
    return faulty_programs(folder, "pyramid_pool_driver.cpp", KERNELS, FAULTS)


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
def test_copy_without_fault_passes(faulty, tmp_path: Path, sanitizer: str) -> None:
    for problem in (CONTIGUOUS, CHANNELS_LAST, *WITH_BARRIERS):
        check(faulty(sanitizer), tmp_path, problem)


@pytest.mark.parametrize(
    ("fault", "problem", "report"),
    [
        ("shared index", CHANNELS_LAST, "heap-buffer-overflow"),
        ("global read", CONTIGUOUS, "heap-buffer-overflow"),
        ("global write", CONTIGUOUS, "heap-buffer-overflow"),
        ("negative index", CONTIGUOUS, "heap-buffer-overflow"),
        ("thread without barrier", CONTIGUOUS, r"and waits, but thread \(5, 0, 0\) is at __sync"),
    ],
)
def test_fault_is_reported(
    faulty, tmp_path: Path, fault: str, problem: Problem, report: str
) -> None:
    with pytest.raises(Failed, match=report):
        check(faulty("address"), tmp_path, problem, ATTNOPS_FAULT=fault)


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


# The emulation itself, on small kernels.


@pytest.fixture(scope="module")
def selftest() -> Path:
    return build("selftest_driver.cpp", "address")


def printed(program: Path, kernel: str, **options: str) -> list[list[float]]:
    done = toolchain.run(program, kernel, **options)
    assert done.returncode == 0, done.stderr
    return [[float(value) for value in line.split()] for line in done.stdout.splitlines()]


def test_shuffles_and_shared_memory_give_the_block_sum(selftest: Path) -> None:
    sums = [sum(range(96)), sum(range(96, 192))]
    for order in ("forward", "reverse", "5"):
        assert printed(selftest, "block_sum", order=order) == [sums]


def test_warp_functions(selftest: Path) -> None:
    """The lanes that the CUDA C++ Programming Guide names for each function and width."""
    lanes = range(32)
    assert printed(selftest, "warp_functions", order="reverse") == [
        [10 * (lane // 8 * 8 + 35 % 8) for lane in lanes],
        [lane - 3 if lane % 16 >= 3 else lane for lane in lanes],
        [lane + 5 if lane % 16 + 5 < 16 else lane for lane in lanes],
        [lane ^ 9 for lane in lanes],
        [pytest.approx(sum(1 << lane for lane in lanes if lane % 3 == 0), rel=1e-5)] * 32,
        [1] * 32,
        [lane ^ 1 if lane < 16 else -(lane ^ 2) for lane in lanes],
    ]


def test_order_of_threads(selftest: Path) -> None:
    assert printed(selftest, "record_order") == [[0, 1, 2, 3, 0, 1, 2, 3]]
    assert printed(selftest, "record_order", order="reverse") == [[3, 2, 1, 0, 3, 2, 1, 0]]
    orders = {tuple(printed(selftest, "record_order", order=str(k))[0]) for k in range(1, 5)}
    assert len(orders) > 1
    for order in orders:
        assert sorted(order[:4]) == sorted(order[4:]) == [0, 1, 2, 3]


def test_shared_memory_is_poisoned_for_every_block(selftest: Path) -> None:
    (values,) = printed(selftest, "stale_shared")
    assert len(values) == 4 and all(value != value for value in values)


@pytest.mark.parametrize(
    ("kernel", "report"),
    [
        (
            "early_return",
            r"thread \(0, 0, 0\) is at __syncthreads.*thread \(5, 0, 0\) has returned",
        ),
        ("two_barriers", r"is at __syncthreads.*but thread \(32, 0, 0\) is at __syncthreads"),
        ("barrier_and_shuffle", r"__shfl_sync.*but thread \(3, 0, 0\) is at __syncthreads"),
        ("shuffle_without_lane", r"__shfl_sync.*but thread \(7, 0, 0\) has returned"),
        ("shuffle_different_masks", r"__shfl_xor_sync.*with mask ffffffff and waits, but thread"),
        ("mask_without_self", r"thread \(16, 0, 0\) is at __shfl_sync.*without its own lane"),
        ("read_outside_mask", r"reads a lane that does not take part"),
        ("static_overrun", r"AddressSanitizer: heap-buffer-overflow"),
        ("dynamic_overrun", r"AddressSanitizer: heap-buffer-overflow"),
        ("misaligned_access", r"misaligned address"),
        ("large_block", r"illegal block size"),
        ("large_grid", r"illegal grid size"),
        ("large_shared", r"more shared memory than any device has"),
    ],
)
def test_misuse_is_reported(selftest: Path, kernel: str, report: str) -> None:
    done = toolchain.run(selftest, kernel)
    assert done.returncode != 0
    assert re.search(report, done.stderr), done.stderr


def test_race_without_effect_is_reported() -> None:
    thread = build("selftest_driver.cpp", "thread")
    for kernel in ("block_sum", "warp_functions", "record_order"):
        printed(thread, kernel)
    done = toolchain.run(thread, "benign_race")
    assert done.returncode != 0 and "data race" in done.stderr
