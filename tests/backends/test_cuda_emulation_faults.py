"""Faults put into CUDA kernels, which the emulation and the sanitizers must catch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from emulation import local_attention, pyramid_pool, strip_conv
from emulation.exchange import Failed
from emulation.faults import BARRIER, WITHOUT_BARRIER, barriers, faulty_programs, is_caught

pytestmark = pytest.mark.usefixtures("without_onednn")
OVERFLOW = "heap-buffer-overflow"
REPORTS = {"thread without barrier": r"and waits, but thread \(5, 0, 0\) is at __sync"}


@dataclass(frozen=True)
class Suspect:
    """An op whose kernels are copied, with code in which the environment turns each fault on.

    Args:
        op: whose problems are sent to the kernels, and checked.
        kernels: files of csrc/cuda that have barriers, or faults.
        faults: by name: file, what stands there, and what the copy has instead.
        problems: `check` passes every barrier in one of these.
        hit: by fault, the problem that meets it; without: the first of `problems`.
    """

    op: ModuleType
    kernels: Sequence[str]
    faults: Mapping[str, tuple[str, str, str]]
    problems: Sequence[Any]
    hit: Mapping[str, Any]


POOLED = pyramid_pool.Problem((1, 3, 12, 17))
# More channels than are staged at a time, in parts.
ATTENDED = local_attention.Problem((1, 20, 6, 9), 21)
CONVOLVED = strip_conv.Problem((1, 3, 10, 9), (3, 3), ((3, 5), (7, 3)))
SUSPECTS = {
    "pyramid_pool": Suspect(
        pyramid_pool,
        ("pyramid_pool/kernels.cuh", "pyramid_pool/backward_kernels.cuh"),
        {
            "shared index": (
                "pyramid_pool/kernels.cuh",
                "(s_pieces + piece * tile_channels + lane * kVec) =",
                "(s_pieces + piece * tile_channels + lane * kVec + FAULT) =",
            ),
            "global read": (
                "pyramid_pool/kernels.cuh",
                "p_x += plane * rows.size * width;",
                "p_x += plane * rows.size * width + FAULT;",
            ),
            "global write": (
                "pyramid_pool/kernels.cuh",
                "p_out[plane * levels.cells + s] =",
                "p_out[plane * levels.cells + s + FAULT] =",
            ),
            "negative index": (
                "pyramid_pool/backward_kernels.cuh",
                "p_grad_x += plane * rows.size * width;",
                "p_grad_x += plane * rows.size * width - FAULT;",
            ),
            "thread without barrier": (
                "pyramid_pool/backward_kernels.cuh",
                BARRIER,
                WITHOUT_BARRIER,
            ),
        },
        [  # long rows in rounds, shared planes, and channels_last
            POOLED,
            pyramid_pool.Problem((1, 1, 56, 301), multiprocessors=1),
            pyramid_pool.Problem((1, 8, 13, 17), channels_last=True),
            pyramid_pool.Problem((1, 1, 56, 301), multiprocessors=4),
        ],
        hit={"shared index": pyramid_pool.Problem((1, 8, 12, 17), channels_last=True, misalign=1)},
    ),
    "local_attention": Suspect(
        local_attention,
        (
            "local_attention/tile.cuh",
            "local_attention/products.cuh",
            "local_attention/kernels.cuh",
            "local_attention/backward_kernels.cuh",
        ),
        {
            "shared index": (
                "local_attention/tile.cuh",
                "s_channels[vector * plan.plane + position] = gather",
                "s_channels[(vector + FAULT * kStaged) * plan.plane + position] = gather",
            ),
            "global read": (
                "local_attention/tile.cuh",
                "if (count >= kWidth<T>)",
                "if (count >= kWidth<T> || FAULT)",
            ),
            "global write": (
                "local_attention/tile.cuh",
                "if (pixel < 0) return;",
                "if (pixel < 0 && !FAULT) return;",
            ),
            "window too wide": (
                "local_attention/products.cuh",
                "for (int row = 0; row < plan.kernel_height; ++row)",
                "for (int row = 0; row < plan.kernel_height + 99 * FAULT; ++row)",
            ),
            "thread without barrier": ("local_attention/products.cuh", BARRIER, WITHOUT_BARRIER),
        },
        [ATTENDED, replace(ATTENDED, channels_last=True)],
        hit={},
    ),
    "strip_conv": Suspect(
        strip_conv,
        ("strip_conv/tile.cuh", "strip_conv/kernels.cuh", "strip_conv/backward_kernels.cuh"),
        {
            "global read": (
                "strip_conv/tile.cuh",
                "inside ? widen(p_map",
                "inside || FAULT ? widen(p_map",
            ),
            "row too long": (
                "strip_conv/tile.cuh",
                "for (int t = 0; t < taps; ++t, s_in",
                "for (int t = 0; t < taps + 9999 * FAULT; ++t, s_in",
            ),
            "global write": (
                "strip_conv/kernels.cuh",
                "if (tile.y + row + j < plan.height)",
                "if (tile.y + row + j < plan.height || FAULT)",
            ),
            "thread without barrier": ("strip_conv/kernels.cuh", BARRIER, WITHOUT_BARRIER),
        },
        [  # two strips, none, sums in several rounds
            CONVOLVED,
            replace(CONVOLVED, channels_last=True),
            strip_conv.Problem((1, 1, 9, 21), (3, 3), ()),
            strip_conv.Problem((1, 1, 3, 12), (11, 11), ((3, 3),)),
        ],
        hit={},
    ),
}
BARRIERS = [(name, b) for name, suspect in SUSPECTS.items() for b in barriers(suspect.kernels)]
FAULTS = [(name, fault) for name, suspect in SUSPECTS.items() for fault in suspect.faults]


@pytest.fixture(scope="module")
def check_faulty(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Callable]:
    """`check` of an op on the copy of its kernels, built under a sanitizer; called with
    ATTNOPS_FAULT, they have that fault.
    """
    built = {}

    def checker(name: str, sanitizer: str) -> Callable[..., None]:
        suspect = SUSPECTS[name]
        if name not in built:
            folder = tmp_path_factory.mktemp(name)
            driver = f"{name}_driver.cpp"
            built[name] = faulty_programs(folder, driver, suspect.kernels, suspect.faults)
        program: Path = built[name](sanitizer)
        return partial(suspect.op.check, program, tmp_path_factory.mktemp("run"))

    return checker


@pytest.mark.parametrize("sanitizer", ["address", "thread"])
@pytest.mark.parametrize("name", SUSPECTS)
def test_copy_without_fault_passes(check_faulty, name: str, sanitizer: str) -> None:
    check = check_faulty(name, sanitizer)
    for problem in (*SUSPECTS[name].problems, *SUSPECTS[name].hit.values()):
        check(problem)


@pytest.mark.parametrize(("name", "fault"), FAULTS)
def test_fault_is_reported(check_faulty, name: str, fault: str) -> None:
    problem = SUSPECTS[name].hit.get(fault, SUSPECTS[name].problems[0])
    with pytest.raises(Failed, match=REPORTS.get(fault, OVERFLOW)):
        check_faulty(name, "address")(problem, ATTNOPS_FAULT=fault)


@pytest.mark.parametrize(("name", "barrier"), BARRIERS)
def test_missing_barrier_is_a_race(check_faulty, name: str, barrier: str) -> None:
    """Under ThreadSanitizer, in any one order of the threads."""
    check, problems = check_faulty(name, "thread"), SUSPECTS[name].problems
    assert is_caught(check, problems, barrier, "data race", ["forward"])


@pytest.mark.parametrize(("name", "barrier"), BARRIERS)
def test_missing_barrier_changes_the_result(check_faulty, name: str, barrier: str) -> None:
    """In one of two opposite orders of the threads, without ThreadSanitizer."""
    check, problems = check_faulty(name, "address"), SUSPECTS[name].problems
    assert is_caught(check, problems, barrier, "", ["forward", "reverse"])
