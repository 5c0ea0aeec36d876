"""CUDA kernels on the host, under sanitizers, against PyTorch; faults in them must be caught."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from emulation import toolchain
from emulation.exchange import DTYPES
from emulation.pyramid_pool import Problem, backward, check, forward, make_input
from emulation.toolchain import build

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
