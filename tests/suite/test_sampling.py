"""What the fast suite keeps of the grids on Triton's interpreter."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from sampling import FEW, SIZE, sample

import attnops

TESTS = Path(__file__).resolve().parents[1]
OPS, RECORDER = TESTS / "ops", TESTS / "support" / "triton_grids.py"
DTYPES = {"torch.float32", "torch.float16", "torch.bfloat16"}


def grid(**sizes: int) -> list[tuple[str, dict[str, int]]]:
    cases = itertools.product(*(range(n) for n in sizes.values()))
    return [(str(case), dict(zip(sizes, case, strict=True))) for case in cases]


def kept_of(cases) -> list[dict[str, int]]:
    return [cases[i][1] for i in sample(cases)]


@pytest.mark.parametrize(
    "sizes",
    [
        {"case": 7, "dtype": 3},
        {"size": 8, "dtype": 3, "align_corners": 2},
        {"case": 6, "reduce": 3, "dtype": 3, "align_corners": 2},
        {"layout": 6, "grad_layout": 6},
        {"case": 30},
        {"flag": 1},
    ],
    ids=str,
)
def test_every_value_and_every_pair_of_options_is_kept(sizes):
    cases = grid(**sizes)
    kept = kept_of(cases)
    for name, count in sizes.items():
        assert {case[name] for case in kept} == set(range(count))
    few = [name for name, count in sizes.items() if count <= FEW]
    for a, b in itertools.combinations(few, 2):
        assert len({(case[a], case[b]) for case in kept}) == sizes[a] * sizes[b]
    assert len(kept) <= max(SIZE, 12, *sizes.values())


def test_small_grids_are_kept_whole_and_order_does_not_matter():
    cases = grid(a=2, b=3)
    assert len(sample(cases)) == len(cases)
    cases = grid(case=7, dtype=3, flag=2)
    turned = cases[::-1]
    assert sorted(map(str, kept_of(cases))) == sorted(map(str, kept_of(turned)))


@pytest.fixture(scope="module")
def grids() -> dict[tuple[str, str, str], list[dict]]:
    pytest.importorskip("triton")
    command = [sys.executable, str(RECORDER), str(OPS)]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    found: dict[tuple[str, str, str], list[dict]] = {}
    for row in json.loads(done.stdout.splitlines()[-1]):
        found.setdefault((row["op"], row["file"], row["test"]), []).append(row)
    return found


def runnable(row: dict) -> bool:
    return row["values"].get("dtype") != "torch.float64"


def test_every_value_of_every_parameter_runs_on_triton(grids):
    for (_, file, test), rows in grids.items():
        if any("threads" in row["values"] for row in rows):
            continue  # left to `make test-all`
        assert not any(row["kept"] for row in rows if not runnable(row))
        for name in rows[0]["values"]:
            every, kept = (
                {row["values"][name] for row in rows if runnable(row) and wanted(row)}
                for wanted in (lambda row: True, lambda row: row["kept"])
            )
            assert kept == every, f"{file}, {test}: {name} never is {every - kept}"


def test_every_dtype_of_every_op_runs_on_triton(grids):
    tested: dict[str, set[str]] = {}
    for (op, _, test), rows in grids.items():
        if test in ("test_agrees_with_float64", "test_chooses_the_largest"):
            dtypes = {row["values"]["dtype"] for row in rows if row["kept"]}
            tested[op] = tested.get(op, set()) | dtypes
    assert tested == dict.fromkeys(attnops.backends(), DTYPES)
