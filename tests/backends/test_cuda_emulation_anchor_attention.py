"""CUDA kernels of anchor_attention on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from emulation.anchor_attention import Problem, backward, check, forward, make_inputs
from emulation.exchange import Failed
from emulation.faults import faulty_programs, is_caught
from emulation.toolchain import build

HALVES = (torch.float16, torch.bfloat16)
PROBLEMS = [  # (B, Ck, Cv, N, S): nothing divides; several steps of channels; wide accesses
    Problem((1, 3, 5, 7, 3)),
    Problem((2, 37, 33, 131, 110), bias=True),
    Problem((1, 36, 40, 130, 64), channels_last=True, bias=True),
    Problem((1, 5, 9, 128, 65), channels_last=True, misalign=1),
    Problem((1, 67, 129, 72, 104), dtype=HALVES[0], bias=True),
    Problem((1, 72, 64, 33, 110), dtype=HALVES[1], channels_last=True),
    Problem((1, 7, 65, 140, 9), dtype=HALVES[1], misalign=1, bias=True),
    Problem((2, 5, 3, 300, 17), dtype=HALVES[0], channels_last=True, slab_tiles=2, bias=True),
    Problem((3, 8, 4, 129, 5), slab_tiles=4),
]
ORDERS = ("forward", "reverse", "11")


def describe(problem: Problem) -> str:
    return problem.describe(problem.shape, "bias" if problem.bias else "no_bias")


@pytest.fixture(scope="module")
def program() -> Path:
    return build("anchor_attention_driver.cpp", "address")


@pytest.mark.parametrize("k", range(len(PROBLEMS)), ids=lambda k: describe(PROBLEMS[k]))
def test_matches_the_reference(program: Path, tmp_path: Path, k: int) -> None:
    check(program, tmp_path, PROBLEMS[k], order=ORDERS[k % len(ORDERS)])
