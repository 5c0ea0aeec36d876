"""CUDA kernels of anchor_attention on the host, under sanitizers, against the float64 reference."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from emulation.anchor_attention import Problem, backward, check, forward, make_inputs
from emulation.exchange import Failed
from emulation.faults import barriers, faulty_programs, is_caught
from emulation.toolchain import build

from attnops import reference
from attnops.reference.anchor_attention import anchor_scores

HALVES = (torch.float16, torch.bfloat16)
PROBLEMS = [  # (B, Ck, Cv, N, S): nothing divides; several steps of channels; wide accesses
    Problem((1, 3, 5, 7, 3)),
    Problem((1, 37, 33, 13, 110), bias=True),
    Problem((1, 36, 40, 132, 64), channels_last=True, bias=True),
    Problem((1, 3, 9, 12, 65), channels_last=True, misalign=1),
    Problem((1, 67, 129, 72, 104), dtype=HALVES[0], bias=True),
    Problem((1, 72, 64, 33, 110), dtype=HALVES[1], channels_last=True),
    Problem((1, 7, 65, 140, 9), dtype=HALVES[1], misalign=1, bias=True),
    Problem((2, 5, 3, 300, 17), dtype=HALVES[0], channels_last=True, slab_tiles=2, bias=True),
    Problem((3, 8, 4, 129, 5), dtype=HALVES[1], slab_tiles=4),
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


@pytest.mark.parametrize("k", [0, 5])
def test_statistics_and_orders(program: Path, tmp_path: Path, k: int) -> None:
    """lse is the reference's; the order of threads does not change a bit."""
    problem = PROBLEMS[k]
    inputs = make_inputs(problem)
    out, lse = forward(program, tmp_path, problem, inputs)
    query, key, _, *bias = (x.double() for x in inputs)
    scores = anchor_scores(query, key, problem.scale, *bias)
    torch.testing.assert_close(lse.double(), scores.logsumexp(2), rtol=1e-5, atol=1e-5)
    grad = torch.randn_like(out)
    grads = backward(program, tmp_path, problem, grad, inputs, lse)
    again = forward(program, tmp_path, problem, inputs, order="reverse")
    grads_again = backward(program, tmp_path, problem, grad, inputs, lse, order="3")
    for found, other in zip([out, lse, *grads], [*again, *grads_again], strict=True):
        assert torch.equal(found, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_not_finite_stays_where_it_belongs(
    program: Path, tmp_path: Path, dtype: torch.dtype
) -> None:
    """NaN in one position's query, and in one channel of the values; a bias of minus infinity."""
    problem = Problem((1, 5, 6, 9, 7), dtype=dtype, bias=True)
    query, _, value, bias = inputs = make_inputs(problem)
    query[0, 2, 4] = value[0, 3, 6] = torch.nan
    bias[0, 1] = -torch.inf
    out, lse = forward(program, tmp_path, problem, inputs)
    expected = torch.zeros_like(out, dtype=torch.bool)
    expected[:, :, 4] = expected[:, 3] = True
    assert torch.equal(out.isnan(), expected)
    wide = [x.double().requires_grad_() for x in inputs]
    plain = reference.anchor_attention(*wide[:3], problem.scale, bias=wide[3])
    grad = torch.randn_like(out)
    grads = backward(program, tmp_path, problem, grad, inputs, lse)
    for found, wanted in zip(grads, torch.autograd.grad(plain, wide, grad.double()), strict=True):
        assert torch.equal(found.isnan(), wanted.isnan())
        torch.testing.assert_close(found.double(), wanted, rtol=2e-2, atol=2e-2, equal_nan=True)


@pytest.mark.parametrize(
    ("anchors", "dtype", "reason"),
    [
        (113, torch.float32, "up to S=112 anchors, got S=113"),
        (3, torch.float64, "it computes in float32, got float64"),
    ],
)
def test_library_and_python_refuse_alike(
    program: Path, tmp_path: Path, anchors: int, dtype: torch.dtype, reason: str
) -> None:
    from attnops._backends.cuda import _refuse_anchor_attention

    problem = Problem((1, 3, 2, 5, anchors), dtype=dtype)
    inputs = make_inputs(problem)
    assert reason in _refuse_anchor_attention(*inputs)
    if dtype != torch.float64:
        with pytest.raises(Failed, match="unsupported number of anchors"):
            forward(program, tmp_path, problem, inputs)


KERNELS = ("anchor_attention/products.cuh", "anchor_attention/backward_kernels.cuh")
FAULTS = {
    "stage read too early": (
        KERNELS[0],
        "wait_copies<1>();",
        "FAULT ? wait_copies<2>() : wait_copies<1>();",
    ),
    "output read before it is written": (
        KERNELS[0],
        "  __syncwarp();\n  constexpr int kVec",
        "  if (!FAULT) __syncwarp();\n  constexpr int kVec",
    ),
    "wrong lane in a fragment": (
        KERNELS[0],
        "(32 * at.warp + at.g) * row_step",
        "(32 * at.warp + (at.g ^ FAULT)) * row_step",
    ),
}


@pytest.mark.slow
def test_faults_are_caught(tmp_path_factory: pytest.TempPathFactory) -> None:
    """So is every missing barrier: by values, in one of two opposite orders of the threads."""
    folder = tmp_path_factory.mktemp("anchor_attention")
    program = faulty_programs(folder, "anchor_attention_driver.cpp", KERNELS, FAULTS)("address")
    problem = Problem((1, 67, 70, 70, 3), bias=True)
    run = partial(check, program, folder)
    run(problem)
    for fault in [*FAULTS, *barriers(KERNELS)]:
        assert is_caught(run, [problem], fault, "", ["forward", "reverse"]), fault


@pytest.mark.slow
def test_nothing_races(tmp_path: Path) -> None:
    """ThreadSanitizer, which knows only barriers to order threads."""
    program = build("anchor_attention_driver.cpp", "thread", defines=("FLOAT32_ONLY",))
    for problem in (
        Problem((1, 35, 34, 5, 3), bias=True),
        Problem((1, 3, 34, 130, 65), channels_last=True, slab_tiles=1),
    ):
        check(program, tmp_path, problem)
