"""CUDA kernels of nmf on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from emulation.exchange import Failed
from emulation.faults import faulty_programs, is_caught
from emulation.nmf import Problem, check, make_inputs, run_forward
from emulation.toolchain import build

from attnops.nmf import RECORD_ALL, RECORD_LAST, RECORD_NOTHING

HALVES = (torch.float16, torch.bfloat16)
PROBLEMS = [  # nothing divides; more tiles than blocks; more items than blocks; wide reads
    Problem((1, 7, 11, 3), multiprocessors=2),
    Problem((1, 72, 65, 64), steps=1, multiprocessors=2, misalign=1),
    Problem((1, 33, 65, 16), steps=3, multiprocessors=3, channels_last=True),
    Problem((3, 9, 40, 33), steps=1, multiprocessors=2, dtype=HALVES[0]),
    Problem((2, 64, 32, 20), steps=0, multiprocessors=4, dtype=HALVES[0], channels_last=True),
    Problem((2, 16, 64, 5), multiprocessors=5, dtype=HALVES[1]),
    Problem((2, 20, 45, 35), one_step=True, multiprocessors=4),
    Problem((1, 8, 64, 3), one_step=True, dtype=HALVES[1], channels_last=True),
    Problem((1, 66, 1, 40), steps=1, dtype=HALVES[1], channels_last=True),
]
ORDERS = ("forward", "reverse", "11")


def describe(problem: Problem) -> str:
    return problem.describe(problem.shape, f"steps{problem.steps}")


@pytest.fixture(scope="module")
def program() -> Path:
    return build("nmf_driver.cpp", "address")


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_matches_the_reference(program: Path, tmp_path: Path, k: int) -> None:
    check(program, tmp_path, PROBLEMS[k], order=ORDERS[k % len(ORDERS)])


def test_what_is_kept(program: Path, tmp_path: Path) -> None:
    """Results and past agree, and the first coefficients are a softmax."""
    problem = PROBLEMS[3]
    inputs = make_inputs(problem)
    found = run_forward(program, tmp_path, problem, inputs, RECORD_ALL)
    past_bases, past_coef = found[2:]
    assert torch.equal(past_bases[-1].to(problem.dtype), found[0])
    assert torch.equal(past_coef[-1].to(problem.dtype), found[1])
    scores = problem.inv_t * inputs[0].double().mT @ inputs[1].double()
    torch.testing.assert_close(past_coef[0].double(), scores.softmax(-1), rtol=1e-5, atol=1e-6)


def test_records_and_orders_do_not_change_a_bit(program: Path, tmp_path: Path) -> None:
    problem = Problem((2, 40, 70, 6), multiprocessors=4)
    inputs = make_inputs(problem)
    everything = run_forward(program, tmp_path, problem, inputs, RECORD_ALL, order="reverse")
    last = run_forward(program, tmp_path, problem, inputs, RECORD_LAST, order="3")
    nothing = run_forward(program, tmp_path, problem, inputs, RECORD_NOTHING)
    for found in (last, nothing):
        assert torch.equal(found[0], everything[0]) and torch.equal(found[1], everything[1])
    assert torch.equal(last[2][0], everything[2][-1])
    assert torch.equal(last[3][0], everything[3][-2])


@pytest.mark.parametrize(
    ("shape", "dtype", "reason"),
    [
        ((1, 8, 5, 65), torch.float32, "up to R=64 bases of D=1024 channels, got R=65, D=8"),
        ((1, 1025, 5, 3), torch.float16, "up to R=64 bases of D=1024 channels, got R=3, D=1025"),
        ((1, 8, 5, 3), torch.float64, "it computes in float32, got float64"),
    ],
)
def test_library_and_python_refuse_alike(
    program: Path, tmp_path: Path, shape, dtype: torch.dtype, reason: str
) -> None:
    from attnops._backends.cuda import _refuse_nmf

    problem = Problem(shape, dtype=dtype)
    inputs = make_inputs(problem)
    assert reason in _refuse_nmf(*inputs)
    if dtype != torch.float64:
        with pytest.raises(Failed, match="unsupported rank or channels"):
            run_forward(program, tmp_path, problem, inputs, RECORD_NOTHING)


@pytest.mark.parametrize(("channels", "rank"), [(1, 1), (65, 32), (512, 33), (1024, 64)])
def test_shared_memory_fits_as_python_says(channels: int, rank: int) -> None:
    """In sm_90's 227 KiB; 512 channels in sm_80's 163 KiB."""
    from attnops._backends.cuda import _nmf_shared_bytes

    depth, padded = -(-channels // 64) * 64, -(-rank // 32) * 32
    floats = 32 * depth + 256 * padded + 64 * (padded + 4) + padded * (padded + 4)
    assert _nmf_shared_bytes(channels, rank) == 4 * floats <= 227 * 1024
    assert channels > 512 or 4 * floats <= 163 * 1024


FAULTS = {
    "missing grid barrier": (
        "nmf/kernels.cuh",
        "      barrier.wait();\n      sum_squares(",
        "      if (!FAULT) barrier.wait();\n      sum_squares(",
    ),
    "missing grid barrier of the backward": (
        "nmf/backward_kernels.cuh",
        "      if (update > 0) barrier.wait();",
        "      if (update > 0 && !FAULT) barrier.wait();",
    ),
    "stage read too early": (
        "nmf/dx_kernel.cuh",
        "wait_copies<1>();",
        "FAULT ? wait_copies<2>() : wait_copies<1>();",
    ),
    "wrong lane in a fragment": (
        "nmf/products.cuh",
        "s_x[n * depth + (d ^ nmf_turn(n))]",
        "s_x[(n ^ FAULT) * depth + (d ^ nmf_turn(n ^ FAULT))]",
    ),
}


@pytest.mark.slow
def test_faults_are_caught(tmp_path_factory: pytest.TempPathFactory) -> None:
    """By values, in one of two opposite orders of the threads; without a fault, by none."""
    files = sorted({file for file, _, _ in FAULTS.values()})
    folder = tmp_path_factory.mktemp("nmf")
    program = faulty_programs(folder, "nmf_driver.cpp", files, FAULTS)("address")
    problem = Problem((1, 9, 40, 3), steps=1, multiprocessors=2)
    run = partial(check, program, folder)
    run(problem)
    for fault in FAULTS:
        assert is_caught(run, [problem], fault, "", ["forward", "reverse"]), fault


@pytest.mark.slow
def test_nothing_races(tmp_path: Path) -> None:
    """ThreadSanitizer, which knows only barriers to order threads and blocks."""
    program = build("nmf_driver.cpp", "thread", defines=("FLOAT32_ONLY",))
    for problem in (
        Problem((1, 7, 40, 3), steps=1, multiprocessors=2),
        Problem((1, 9, 70, 36), steps=1, multiprocessors=2, channels_last=True),
    ):
        check(program, tmp_path, problem)
