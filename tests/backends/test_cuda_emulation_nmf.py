"""CUDA kernels of nmf on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
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
