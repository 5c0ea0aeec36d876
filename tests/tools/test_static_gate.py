"""The gate on compiled kernels: its rules, its table of exceptions, and what it says today."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("triton")

from attnops.benchmarks.static.cuda_launches import short_name
from attnops.benchmarks.static.gate import faults
from attnops.benchmarks.static.limits import EXCEPTIONS, LAUNCHES, Exempt
from attnops.kernels.aot.cuda import cuda_cases

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Triton's Linux tools")

KERNEL = {"kernel": "k", "programs": 132, "spills": 0, "wide_loads": 0.9, "wide_stores": 1.0}


def row(*kernels: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A row of merge_scales on an aligned map, which may have one launch forward."""
    facts = {"op": "merge_scales", "shape": [1, 24, 160, 160], "options": [], "dtype": "bfloat16"}
    facts |= {"layout": "channels_last", "pass": "forward", "aten": []}
    return facts | changes | {"kernels": list(kernels or (KERNEL,))}


def test_a_good_row_has_no_faults() -> None:
    assert faults([row()], {}) == []


@pytest.mark.parametrize(
    "changes, rule, word",
    [
        ({"programs": 131}, "programs", "131 programs"),
        ({"spills": 2}, "spills", "2 accesses of local memory"),
        ({"wide_loads": 0.89}, "loads", "89% of loads"),
        ({"wide_stores": 0.0}, "stores", "0% of stores"),
    ],
    ids=str,
)
def test_rules_of_kernels(changes: dict[str, Any], rule: str, word: str) -> None:
    bad = row(KERNEL | changes)
    (fault,) = faults([bad], {})
    assert fault.startswith("merge_scales 1x24x160x160 channels_last: k: ") and word in fault
    for entry, expected in [
        (Exempt(rule, "k", "why"), 0),
        (Exempt(rule, "k", "why", layout="channels_last", shape=(1, 24, 160, 160)), 0),
        (Exempt(rule, "other", "why"), 2),  # the fault itself, and a line that nothing needs
        (Exempt(rule, "k", "why", layout="contiguous"), 2),
        (Exempt(rule, "k", "why", shape=(8, 24, 160, 160)), 2),
    ]:
        assert len(faults([bad], {"merge_scales": (entry,)})) == expected, entry


def test_rules_of_passes() -> None:
    twice = row(KERNEL, KERNEL, aten=["sum.default"])
    launches, aten = faults([twice], {})
    assert "2 launches, expected at most 1" in launches and "1 aten" in aten
    allowed = Exempt("launches", "forward", "why", most=2), Exempt("aten", "forward", "", most=1)
    assert faults([twice], {"merge_scales": allowed}) == []
    assert faults([row(KERNEL, KERNEL, KERNEL)], {"merge_scales": allowed[:1]}) != []
    (lower,) = faults([twice], {"merge_scales": (Exempt("launches", "forward", "", most=3),)})[1:]
    assert "no longer needed, remove or lower it" in lower


def test_narrow_accesses_count_where_rows_are_aligned() -> None:
    narrow = KERNEL | {"wide_loads": 0.0}
    assert len(faults([row(narrow)], {})) == 1
    assert faults([row(narrow, dtype="float32")], {}) == []
    assert faults([row(narrow, shape=[1, 21, 160, 160])], {}) == []
    assert len(faults([row(narrow, shape=[1, 21, 160, 160], layout="contiguous")], {})) == 1
    assert faults([row(narrow, shape=[1, 24, 160, 161], layout="contiguous")], {}) == []


def test_lines_on_kernels_that_were_not_compiled_wait() -> None:
    entry = Exempt("loads", "k", "why", layout="channels_last")
    uncompiled = row({"kernel": "k", "programs": 132})
    assert faults([uncompiled], {"merge_scales": (entry,)}, whole=False) == []
    assert len(faults([uncompiled], {"merge_scales": (entry,)})) == 1
    assert len(faults([row()], {"merge_scales": (entry,)}, whole=False)) == 1


def test_every_exception_has_a_reason() -> None:
    assert set(EXCEPTIONS) <= set(LAUNCHES)
    for entry in (entry for entries in EXCEPTIONS.values() for entry in entries):
        assert len(entry.why.split()) > 2, entry


def test_names_of_cuda_kernels() -> None:
    assert short_name("_ZN7attnops4cuda9nmf_solveI13__nv_bfloat16Li4EEEvPKf") == "nmf_solve"
    assert short_name("memcpy") == "memcpy"


def bench_static(*arguments: str) -> str:
    """What the command prints, which must find no fault."""
    command = [sys.executable, "-m", "attnops.benchmarks", "static", *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-6000:]
    return done.stderr


def test_all_launches_and_a_few_kernels() -> None:
    """Kernels of the forward passes; `make aot` judges all of them."""
    bench_static("--sample")


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_kernels() -> None:
    bench_static()


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(bool(cuda_cases()[1]), reason=cuda_cases()[1])
def test_cuda_kernels_are_followed(tmp_path: Path) -> None:
    bench_static("pyramid_pool", "--out", str(tmp_path))
    document = json.loads((tmp_path / "static.json").read_text())
    rows = [row for row in document["rows"] if row["backend"] == "cuda"]
    assert {(row["pass"], row["layout"]) for row in rows} == {
        (direction, layout)
        for direction in ("forward", "backward")
        for layout in ("contiguous", "channels_last")
    }
    for row in rows:
        assert 0 < row["floor_us"] <= row["low_us"] <= row["high_us"]
        assert all(kernel["registers"] > 16 for kernel in row["kernels"])
    assert set(document["others"]) == {"sm_80", "sm_100"}
