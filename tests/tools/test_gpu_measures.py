"""What a GPU run measures, with timers that need no GPU: checks, rows, the calibration."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch

from attnops.benchmarks.gpu import calibration, checks, dry, measures, plan
from attnops.benchmarks.measure.agreement import Disagreement
from attnops.benchmarks.measure.memory import MemoryUse
from attnops.benchmarks.measure.timing import Budget, Timing
from attnops.benchmarks.ops import cases as op_cases
from attnops.benchmarks.ops import microbench
from attnops.benchmarks.report.records import Row

AVAILABLE = {op: ["triton"] for op in plan.OPS}


# --- checks ---


@pytest.mark.parametrize("op", plan.OPS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_checks_pass_on_what_is_right(op: str, dtype: str) -> None:
    small = plan.SMALL[op]
    layout = op_cases.DEFINITIONS[op].layouts[-1]
    direction = plan.directions(op)[-1]
    case = op_cases.OpCase(op, small.shape, dtype, layout, direction, small.options)
    worst = checks.check(case, "auto", torch.device("cpu"))
    count = op_cases.DEFINITIONS[op].differentiable
    assert len(worst) == 1 + count and all(0 <= value <= 1 for value in worst.values())


def test_checks_see_a_wrong_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    class Doubled(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            return x.clone()

        @staticmethod
        def backward(context, grad):
            return 1.01 * grad

    right = op_cases.FUNCTIONS["pyramid_pool"][op_cases.OURS]
    wrong = lambda x: right(Doubled.apply(x))  # noqa: E731
    monkeypatch.setitem(op_cases.FUNCTIONS["pyramid_pool"], op_cases.OURS, wrong)
    case = op_cases.OpCase("pyramid_pool", (1, 8, 9, 8), direction="forward+backward")
    with pytest.raises(Disagreement, match="gradient 0"):
        checks.check(case, "auto", torch.device("cpu"))
    nan = lambda x: right(x) * float("nan")  # noqa: E731
    monkeypatch.setitem(op_cases.FUNCTIONS["pyramid_pool"], op_cases.OURS, nan)
    with pytest.raises(Disagreement, match="output"):
        checks.check(case, "auto", torch.device("cpu"))


# --- the measures themselves, with timers that need no GPU ---


@pytest.fixture
def measures_on_cpu(monkeypatch: pytest.MonkeyPatch):
    constant = Timing(1.0, 2.0, 3.0, 5)
    for module, names in (
        (microbench, ("time_cuda", "time_cuda_graph", "time_host")),
        (measures, ("time_cuda", "time_cuda_graph")),
    ):
        for name in names:
            monkeypatch.setattr(module, name, lambda *_: constant)
    use = MemoryUse(2**20, 2**19, "none")
    monkeypatch.setattr(microbench, "measure_cuda", lambda case: use)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(measures, "CUDA", torch.device("cpu"))
    document = dry.dry_document()
    rates = {"copy_gb_s": 1000.0, "matmul_gflop_s": 1e6}
    document.parts["rates"] = {t: {"dtype": t, **rates} for t in ("float32", "bfloat16")}
    return document


def test_tasks_of_ops_become_rows(measures_on_cpu) -> None:
    document = measures_on_cpu
    noted = {"pyramid_pool": {"cpu": "its tests failed: test_x"}}
    measuring = measures.Measures((), noted)
    tasks = plan.checks("pyramid_pool", "cpu")
    kinds = [(task.kind, *map(task.details.get, ("dtype", "layout"))) for task in tasks]
    dtypes = ("bfloat16", "float32", "float16")
    checked = {("check", d, layout) for d in dtypes for layout in op_cases.LAYOUTS}
    assert checked == {kind for kind in kinds if kind[0] == "check"}
    assert [kind[0] for kind in kinds[:5]] == ["check"] * 3 + ["warm"] * 2
    assert ("warm", "float32", "channels_last") in kinds and kinds[-1][0] == "warm"
    for task in tasks[:3]:
        measuring.run(document, task, Budget(9))
    assert all(max(found.values()) <= 1 for found in document.parts["checks"].values())
    details = tasks[0].details | {"shape": [1, 8, 9, 8]}
    for contender, backend in (("attnops", "cpu"), ("attnops", "cuda"), ("eager", "")):
        chosen = details | {"contender": contender, "backend": backend}
        measuring.run(document, plan.Task("table", "op", "x", chosen), Budget(9))
    ours, missing, eager = document.rows
    assert (ours.name, ours.backend) == ("attnops (cpu)", "cpu") and "test_x" in ours.note
    assert (ours.p50, ours.host_p50, ours.graph_p50, ours.memory_above_inputs) == (2.0, 2.0, 2.0, 1)
    assert "forced" in missing.note and missing.p50 is None
    assert eager.p50 == 2.0 and ours.ratios == {"eager": 1.0, "eager, better layout": 1.0}
    assert document.parts["launch"] == {"events_us": 2000.0, "graph_us": 2000.0}
    measuring.run(document, replace(tasks[0], details=details | {"backend": "cuda"}), Budget(9))
    assert "forced" in str(document.parts["checks"]["pyramid_pool cuda bfloat16 channels_last"])


def test_tasks_of_blocks_and_networks_are_passed_on(measures_on_cpu, monkeypatch) -> None:
    blocks, nets = [], []
    monkeypatch.setattr(measures, "run", lambda document, options, budget: blocks.append(options))
    monkeypatch.setattr(measures.networks, "measure", lambda *a, **k: nets.append((a[1], k)))
    monkeypatch.setattr(measures.figure2, "measure", lambda *a: blocks.append(a[3]))
    core = plan.core(AVAILABLE)
    tasks = [*core, *plan.rest(AVAILABLE, core)]
    kinds = {task.kind: task for task in reversed(tasks)}
    assert set(kinds) == {
        *("op", "apnb", "apnb compiled", "figure2", "network", "network compiled"),
    }
    for kind in ("apnb", "apnb compiled", "figure2", "network", "network compiled"):
        measures.Measures((), {}).run(measures_on_cpu, kinds[kind], Budget(9))
    plain, compiled, dtype = blocks
    assert (plain.sizes, plain.dtypes, plain.compile_modes) == (((96, 96),), (torch.bfloat16,), ())
    assert compiled.only == ("compiled APNB linear", "compiled APNB released")
    assert dtype == torch.bfloat16
    assert [name for name, _ in nets] == [["segnext_t"], ["segnext_t"]]
    assert list(nets[0][1]["contenders"]) == ["reference", "attnops"]
    refused = [{"op": "nmf", "backend": "reference", "why": "wrong"}]
    monkeypatch.setattr(measures, "why_no_modules", lambda refused, dtype: refused[0]["why"])
    with pytest.raises(RuntimeError, match="wrong"):
        measures.Measures(refused, {}).run(measures_on_cpu, kinds["network"], Budget(9))


# --- the calibration ---


def measured(op: str, passes: str, graph: float, shape, backend="triton", **values) -> Row:
    row = Row(op, "attnops", list(shape), "bfloat16", "channels_last", passes, **values)
    row.backend, row.host_p50 = backend, 0.02
    row.put_timing(Timing(graph, graph + 0.004, graph, 9))
    row.put_timing(Timing(graph, graph, graph, 9), "graph_")
    return row


def static_row(op: str, passes: str, low: float, high: float, shape) -> dict:
    fixed = {"op": op, "shape": list(shape), "dtype": "bfloat16", "layout": "channels_last"}
    fixed |= {"options": [], "pass": passes, "backend": "triton", "launches": 1}
    return fixed | {"low_us": low, "high_us": high, "floor_us": 1.0}


@pytest.fixture
def known(tmp_path):
    """Estimates of 10, 20, 40, 80 us forward and 30, 60, 120, 240 us backward."""
    rows = [
        static_row("pyramid_pool", passes, 0.9 * factor * us, 1.1 * factor * us, (1, 64, us, us))
        for us in (10, 20, 40, 80)
        for passes, factor in (("forward", 1), ("backward", 3))
    ]
    (tmp_path / "static.json").write_text(json.dumps({"arch": "sm_90", "rows": rows}))
    assert calibration.estimates("8.0", tmp_path) == {}
    return calibration.estimates("9.0", tmp_path)


def test_calibration_of_a_perfect_model(known) -> None:
    """Measured is 1.5 times the estimate, forward and backward."""
    rows = [
        measured("pyramid_pool", passes, 1.5e-3 * factor * us, (1, 64, us, us))
        for us in (10, 20, 40, 80)
        for passes, factor in (("forward", 1), ("forward+backward", 4))
    ]
    found = calibration.document_of(rows, known, "GPU", "today")
    assert found["all"] == {
        "rows": 8,
        "pearson_of_logs": 1.0,
        "spearman": 1.0,
        "mean_ratio": 1.5,
        "off": 0,
    }
    passes = [line["pass"] for line in found["rows"]]
    assert passes == ["forward", "backward"] * 4
    assert [line["measured_us"] for line in found["rows"][:2]] == [15.0, 45.0]
    assert found["rows"][0]["host_us"] == 20.0 and found["rows"][0]["by"] == "graph"
    calibration.put_estimates(rows, known)
    assert rows[1].estimate_low == pytest.approx(0.036)
    assert rows[1].estimate_high == pytest.approx(0.044)


def test_calibration_names_what_is_off(known) -> None:
    times = {10: 30.0, 20: 20.0, 40: 10.0, 80: 80.0}  # ratios 3, 1, 1/4, 1
    rows = [measured("pyramid_pool", "forward", 1e-3 * t, (1, 64, u, u)) for u, t in times.items()]
    rows.append(measured("pyramid_pool", "forward", 1.0, (1, 64, 99, 99)))
    found = calibration.document_of(rows, known, "GPU", "today", {"graph_us": 2.0})
    assert found["all"]["rows"] == 4 and len(found["rows"]) == 5
    assert [line["ratio"] for line in found["off"]] == [3.0, 0.25]
    x, y = [math.log(u) for u in times], [math.log(t) for t in times.values()]
    mean_x, mean_y = sum(x) / 4, sum(y) / 4
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    scale = math.sqrt(sum((a - mean_x) ** 2 for a in x) * sum((b - mean_y) ** 2 for b in y))
    assert found["all"]["pearson_of_logs"] == pytest.approx(covariance / scale, abs=1e-4)
    assert found["all"]["spearman"] == pytest.approx(0.2)  # ranks 3 2 1 4
    text = calibration.as_markdown(found)
    assert "## Off by more than 2x" in text and "2 us by graph" in text


def test_ranks_of_equal_values() -> None:
    assert list(calibration._ranks([3.0, 1.0, 3.0, 2.0])) == [3.5, 1.0, 3.5, 2.0]
    assert calibration.correlation([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
