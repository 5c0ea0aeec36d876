"""What is made of benchmark rows and of the device's tests: goals, refusals, reports."""

from __future__ import annotations

from dataclasses import replace

import attnops
from attnops.benchmarks.apnb import cases as apnb_cases
from attnops.benchmarks.gpu import device_tests, measures
from attnops.benchmarks.gpu import run as gpu
from attnops.benchmarks.ops import microbench
from attnops.benchmarks.report import document_markdown, goals
from attnops.benchmarks.report import records as record


def _row(name: str, p50: float, memory_mib: float, **values) -> record.Row:
    shape, dtype = [1, 2048, 256, 128], "bfloat16"
    row = record.Row("apnb", name, shape, dtype, device="GPU", p50=p50, **values)
    row.memory_above_inputs_and_output = memory_mib
    return row


def test_goals_compare_as_required() -> None:
    rows = [
        _row(apnb_cases.EAGER_NON_LOCAL, 40.0, 9000.0),
        _row(apnb_cases.compiled_name("linear", "default"), 2.0, 100.0),
        _row(apnb_cases.OURS_LINEAR, 1.0, 100.0, floor_ms=0.5),
    ]
    found = {goal.what: goal for goal in goals.of(rows)}
    verdicts = [goal.verdict for goal in found.values()]
    assert verdicts == ["met", "not met", "not met", "not met"]
    assert [goal.measured for goal in found.values()] == [40, 90, 2, 2]
    cpu = [replace(row, threads=2, shape=[1, 2048, 96, 96], dtype="float32") for row in rows]
    cpu[0].name = apnb_cases.EAGER_LINEAR
    assert [(goal.required, goal.met) for goal in goals.of(cpu)] == [(">= 3.5", True)]


PYTEST_OUTPUT = """
tests/test_pyramid_pool.py::test_mean[cuda-float32] PASSED               [ 10%]
tests/test_pyramid_pool.py::test_mean[triton-a b] FAILED                 [ 20%]
tests/test_nn_ann.py::test_x SKIPPED (no reason)                         [ 30%]
ERROR tests/test_other.py - ImportError: no
FAILED tests/test_pyramid_pool.py::test_mean[triton-a b] - AssertionError
tests/test_anchor_attention.py::test_long[cuda]
""".splitlines()


def test_outcomes_of_device_tests_are_read() -> None:
    outcomes, running = device_tests.parse(PYTEST_OUTPUT)
    assert outcomes.counts == {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert outcomes.failures == [
        "tests/test_pyramid_pool.py::test_mean[triton-a b]",
        "tests/test_other.py",
    ]
    assert running == "tests/test_anchor_attention.py::test_long[cuda]"
    outcomes.crashed.append(running)
    refused = device_tests.refusals(outcomes)
    assert set(refused) == {"pyramid_pool", "anchor_attention"}
    assert set(refused["pyramid_pool"]) == {"triton"}
    assert set(refused["anchor_attention"]) == {"cuda"}


def test_failures_of_another_backend_do_not_count_for_auto(monkeypatch) -> None:
    there = {name: name in ("cpu", "reference") for name in device_tests.BACKENDS}
    monkeypatch.setattr(attnops, "backends", lambda: {"pyramid_pool": there, "nmf": there})
    refused = [{"op": "pyramid_pool", "backend": "cpu", "why": "wrong"}, {"op": "apnb", "why": ""}]
    assert measures.why_no_modules(refused, "bfloat16") == ""
    refused.append({"op": "nmf", "backend": "reference", "dtype": "float32", "why": "bad"})
    assert measures.why_no_modules(refused, "bfloat16") == ""
    refused.append({"op": "pyramid_pool", "backend": "reference", "why": "worse"})
    assert measures.why_no_modules(refused, "bfloat16") == "worse"


def test_device_folder_names() -> None:
    assert gpu.slug("NVIDIA H200 (80GB)") == "nvidia-h200-80gb"


def test_report_names_failed_tests_and_parts() -> None:
    document = record.Document()
    outcomes = device_tests.Outcomes({"passed": 2, "failed": 1}, ["tests/test_x.py::test_y"])
    document.parts = {"tests": vars(outcomes), "failed parts": {"figure 2": "exit status 1"}}
    text = document_markdown.as_markdown(document)
    assert "1 failed, 2 passed" in text and "`tests/test_x.py::test_y`" in text
    assert "**figure 2 failed:** exit status 1" in text


def test_documents_are_joined() -> None:
    first, second = record.Document(), record.Document()
    first.parts, second.parts = {"rates": {"a": 1}}, {"rates": {"b": 2}, "other": 3}
    second.rows.append(record.Row("apnb", "x", [1], "float32"))
    first.absorb(second)
    assert first.parts == {"rates": {"a": 1, "b": 2}, "other": 3} and len(first.rows) == 1


def _on_gpu(name: str, layout: str, p50: float, graph: float | None, **values) -> record.Row:
    row = record.Row("strip_conv", name, [8, 64, 9, 9], "bfloat16", layout, device="GPU", **values)
    row.p50, row.graph_p50 = p50, graph
    return row


def test_goals_of_ops_on_a_gpu_take_better_layouts() -> None:
    rows = [
        _on_gpu("cudnn", "contiguous", 8.0, 6.0),
        _on_gpu("cudnn", "channels_last", 9.0, 5.0),
        _on_gpu("attnops", "contiguous", 4.0, 1.5, floor_percent=10.0),
        _on_gpu("attnops (cuda)", "channels_last", 2.0, 1.0, floor_percent=30.0),
        _on_gpu("attnops", "channels_last", 1.0, None, threads=2),
    ]
    faster, floor = goals.of(rows)
    assert (faster.measured, faster.replayed, faster.verdict) == (4.0, 5.0, "not met")
    assert (floor.measured, floor.replayed, floor.note) == (30.0, 60.0, "attnops (cuda)")
    assert floor.where == "8x64x9x9 bfloat16" and "% of the floor" in floor.what
    rows[0].p50 = rows[1].p50 = 20.0
    assert goals.of(rows)[0].verdict == "met"


def test_rows_of_an_input_stand_together() -> None:
    rows = [
        _on_gpu(name, layout, 1.0, None)
        for name in ("attnops", "eager")
        for layout in ("contiguous", "channels_last")
    ]
    (grid,) = microbench.grids(rows)
    assert [cells[1] for cells in grid.cells] == ["attnops", "eager"] * 2
