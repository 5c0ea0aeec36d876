"""`make gpu` without a GPU: order, limits of time, broken tasks, files, and the calibration."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace

import pytest
import torch

from attnops.benchmarks.gpu import (
    calibration,
    checks,
    device_tests,
    dry,
    measures,
    plan,
    supervise,
    worker,
)
from attnops.benchmarks.gpu import run as gpu
from attnops.benchmarks.measure.agreement import Disagreement
from attnops.benchmarks.measure.memory import MemoryUse
from attnops.benchmarks.measure.timing import Budget, Timing
from attnops.benchmarks.ops import cases as op_cases
from attnops.benchmarks.ops import microbench
from attnops.benchmarks.report import load
from attnops.benchmarks.report.records import Document, Row

AVAILABLE = {op: ["triton", "cuda"] if op == "nmf" else ["triton"] for op in plan.OPS}


# --- the plan ---


def test_the_most_important_comes_first() -> None:
    core = plan.core(AVAILABLE)
    assert list(dict.fromkeys(task.part for task in core)) == list(plan.CORE)
    table = [task for task in core if task.part == "table"]
    ours = [task for task in table if task.details["contender"] == op_cases.OURS]
    assert table[: len(ours)] == ours, "peers come behind"
    assert list(dict.fromkeys(task.details["op"] for task in ours)) == list(plan.OPS)
    assert plan.OPS[:3] == ("local_attention", "nmf", "strip_conv")
    wanted = {(op, b, d) for op in plan.OPS for b in AVAILABLE[op] for d in plan.directions(op)}
    found = [(t.details["op"], t.details["backend"], t.details["direction"]) for t in ours]
    assert set(found) == wanted and len(found) == len(wanted)
    for task in ours:
        layout = "contiguous" if task.details["op"] == "nmf" else "channels_last"
        assert (task.details["dtype"], task.details["layout"]) == ("bfloat16", layout)
    eager = {(t.details["op"], t.details["layout"]) for t in table if t.who["backend"] == "eager"}
    assert ("strip_conv", "contiguous") in eager and ("strip_conv", "channels_last") in eager


def test_everything_is_measured_once_and_compiled_last() -> None:
    core = plan.core(AVAILABLE)
    rest = plan.rest(AVAILABLE, core)
    names = [task.name for task in (*core, *rest)]
    assert len(names) == len(set(names))
    is_compiled = ["compiled" in task.name for task in rest]
    assert is_compiled == sorted(is_compiled) and is_compiled[-1]
    assert not any("compiled" in task.name for task in core)
    assert plan.CHECKS + plan.OP_TESTS + sum(plan.CORE.values()) < 0.9
    assert set(plan.shares([*core, *rest], 290, 30)) == {*plan.CORE, *plan.REST}


def test_files_of_tests_are_those_of_ops_first(tmp_path) -> None:
    first, others = device_tests.suite_files(gpu.ROOT)
    names = [file.name for file in first]
    assert names.index("test_local_attention.py") < names.index("test_pyramid_pool.py")
    found = [file.name for file in others]
    assert "test_nn_segnext.py" in found and "test_half_precision.py" in found
    assert "test_cuda_emulation_nmf.py" not in found, "it needs no GPU"
    assert len({*first, *others}) == len(first) + len(others)
    for name, text in (
        ("ops/test_nmf.py", "def test_x(\n    backend: str,\n) -> None:"),
        ("models/test_b.py", "def test_x(device): torch.cuda.graph(g)"),
        ("models/test_a.py", "def test_x(device): 0"),
        ("models/test_c.py", "def test_x(): device"),
        ("tools/test_d.py", "def test_x(device): 0"),
    ):
        (tmp_path / "tests" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "tests" / name).write_text(text)
    found = [[f.name for f in part] for part in device_tests.suite_files(tmp_path)]
    assert found == [["test_b.py", "test_nmf.py"], ["test_a.py"]]


# --- a worker ---


class Recorded:
    """Takes a second a task of a clock of its own."""

    def __init__(self) -> None:
        self.now, self.ran, self.lost = 100.0, [], False

    def run(self, document, task, budget) -> None:
        self.now += 1.0
        self.ran.append(task.name)
        document.rows.append(Row("apnb", task.name, [1], "float32"))
        if "bad" in task.name:
            raise RuntimeError("broken\nmore")
        self.lost = "lose" in task.name

    def alive(self) -> bool:
        return not self.lost


def order_of(tmp_path, names, end=200.0, **values) -> worker.Order:
    tasks = [plan.Task(name.split()[0], "op", name) for name in names]
    Document().save(tmp_path / "result.json")
    files = (str(tmp_path / "result.json"), str(tmp_path / "journal"))
    return worker.Order(tasks, list(range(len(tasks))), *files, end, **{"shares": {}, **values})


def states(tmp_path) -> dict[int, str]:
    return {i: line["state"] for i, line in worker.states_of(tmp_path / "journal")[0].items()}


def test_parts_keep_to_their_time(tmp_path) -> None:
    names = ["a 1", "a 2", "a 3", "a 4", "b 1", "b 2", "b 3"]
    order = order_of(tmp_path, names, end=104.5, shares={"a": 3.0, "b": 50.0})
    measuring = Recorded()
    assert worker.work(order, measuring, lambda: measuring.now) == 0
    assert measuring.ran == ["a 1", "a 2", "a 3", "b 1"]
    assert [states(tmp_path)[i] for i in range(7)] == [
        *("done", "done", "done", "left out"),
        *("done", "left out", "left out"),
    ]


def test_a_failure_costs_one_task_and_a_lost_device_the_worker(tmp_path) -> None:
    order = order_of(tmp_path, ["a 1", "a bad", "a lose", "a 4"])
    measuring = Recorded()
    assert worker.work(order, measuring, lambda: measuring.now) == worker.LOST
    found, lines = worker.states_of(tmp_path / "journal")
    assert [found[i]["state"] for i in range(3)] == ["done", "failed", "lost"] and 3 not in found
    assert found[1]["why"] == "RuntimeError: broken"
    names = [row.name for row in Document.load(tmp_path / "result.json").rows]
    assert names == ["a 1", "a bad", "a lose"], "each row is in the file at once"
    with open(tmp_path / "journal", "a") as journal:
        journal.write('{"task": 3, "sta')
    assert worker.states_of(tmp_path / "journal")[1] == lines


def test_refused_tasks_are_not_run() -> None:
    task = next(t for t in plan.checks("nmf", "cuda") if t.details["dtype"] == "float16")
    refusal = {"op": "nmf", "backend": "cuda", "why": "wrong"}
    assert task.is_refused_by(refusal) and task.is_refused_by(refusal | {"dtype": "float16"})
    assert not task.is_refused_by(refusal | {"backend": "triton"})
    assert not task.is_refused_by(refusal | {"dtype": "float32"})
    block = next(t for t in plan.core(AVAILABLE) if t.kind == "apnb")
    assert block.is_refused_by(block.who | {"why": "lost"}) and not block.is_refused_by(refusal)


# --- workers watched ---

STUB = """
import json, os, sys, time
order = json.load(open(sys.argv[1]))
for index in order["waiting"]:
    task = order["tasks"][index]
    with open(order["journal"], "a") as journal:
        def note(state, why=""):
            line = {"task": index, "state": state, "why": why, "at": time.monotonic()}
            print(json.dumps(line), file=journal, flush=True)
        if any(r["op"] == task["details"]["op"] for r in order["refused"]):
            note("refused", order["refused"][0]["why"])
            continue
        note("started")
        if "exit" in task["name"]:
            print("Segmentation fault")
            os._exit(11)
        if "hang" in task["name"]:
            time.sleep(60)
        if "lose" in task["name"]:
            note("lost", "illegal address")
            sys.exit(3)
        note("done")
"""


def supervisor(tmp_path, seconds=30.0, stub=STUB) -> supervise.Supervisor:
    (tmp_path / "stub.py").write_text(stub)
    command = (sys.executable, "-S", str(tmp_path / "stub.py"))
    folder, end = tmp_path / "folder", time.monotonic() + seconds
    return supervise.Supervisor(tmp_path / "result.json", folder, end, command=command)


def watched(tmp_path, *names: str, **values) -> supervise.Outcome:
    tasks = [plan.Task("a", "op", n, {"op": n.split()[0], "backend": "cuda"}, 0.3) for n in names]
    return supervisor(tmp_path, **values).run(tasks)


def test_what_breaks_is_named_and_the_rest_goes_on(tmp_path) -> None:
    outcome = watched(tmp_path, "x 1", "y exit", "y 2", "z hang", "u lose", "v 1")
    assert outcome.done == 2
    assert "exit status 11" in outcome.failed["y exit"] and "fault" in outcome.failed["y exit"]
    assert outcome.failed["z hang"] == "no end after 0 s"
    assert outcome.failed["u lose"] == "illegal address"
    assert [r["op"] for r in outcome.refused] == ["y", "z", "u"]
    assert list(outcome.skipped.values()) == [1] and not outcome.left_out


def test_no_worker_is_begun_without_time(tmp_path) -> None:
    outcome = watched(tmp_path, "x 1", "x 2", seconds=supervise.START - 1)
    assert outcome.left_out == {"a": ["x 1", "x 2"]} and not outcome.failed


def test_workers_that_cannot_begin_are_given_up(tmp_path) -> None:
    outcome = watched(tmp_path, "x 1", stub="raise SystemExit('no torch')")
    assert "no torch" in outcome.failed["measuring"]
    assert outcome.left_out == {"a": ["x 1"]}


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


# --- a whole run, with made-up times ---


@pytest.fixture
def run_dry(monkeypatch: pytest.MonkeyPatch, tmp_path):
    """A whole run whose workers are no processes."""

    def one_worker(self, order: worker.Order) -> str:
        order.parent = 0
        status = worker.work(order, dry.DryMeasures(order.dry))
        return f"exit status {status}" if status else ""

    monkeypatch.setattr(supervise.Supervisor, "_one_worker", one_worker)
    monkeypatch.setattr(supervise, "START", 0.0)
    monkeypatch.setattr(plan, "rest", lambda available, done: [plan.Task(plan.PEERS, "x", "last")])

    def run(**told) -> tuple[int, Document, dict]:
        arguments = ["--dry", json.dumps(told), "--out", str(tmp_path), "--budget", "1000"]
        status = gpu.main(arguments)
        (result,) = [p for p in tmp_path.rglob("*.json") if p.name != calibration.FILE]
        (found,) = tmp_path.rglob(calibration.FILE)
        assert sorted(p.suffix for p in result.parent.iterdir()) == [".json", ".json", ".md", ".md"]
        return status, Document.load(result), json.loads(found.read_text())

    return run


def test_a_whole_run(run_dry, tmp_path, capsys: pytest.CaptureFixture) -> None:
    wrong = "pyramid_pool 2x128x21x24-float32-channels_last-forward+backward triton"
    lose = ["strip_conv 1x64x128x128-bfloat16-channels_last-forward"]
    status, document, found = run_dry(lose=lose, wrong=[wrong])
    assert status == 1
    failed, left_out = document.parts["failed parts"], document.parts["left out"]
    assert failed[wrong].startswith("Disagreement") and "illegal memory" in str(failed)
    assert any(why.startswith("strip_conv 1x64") for why in left_out)
    rows = {(row.table, row.name, row.dtype, row.layout, row.direction) for row in document.rows}
    lost = [row for row in rows if row[0] == "strip_conv" and row[1].startswith("attnops")]
    assert not lost, "the warm-up lost the device on both backends"
    assert ("pyramid_pool", "attnops", "bfloat16", "channels_last", "forward") in rows
    assert not any(r[0] == "pyramid_pool" and r[1:3] == ("attnops", "float32") for r in rows)
    ours = [row for row in document.rows if row.name == "attnops"]
    assert all(row.estimate_low and row.ratios["eager, better layout"] > 5 for row in ours[:8])
    assert found["all"]["rows"] > 50 and len(found["rows"]) >= found["all"]["rows"]
    text = next(p for p in tmp_path.rglob("*.md") if p.stem != "calibration").read_text()
    assert "| launch ms | static ms |" in text and "failed:** Disagreement" in text
    tables = list(dict.fromkeys((row.dtype, row.layout, row.shape[0]) for row in document.rows))
    assert tables[0] == ("bfloat16", "channels_last", 1) and tables[-1][2] == 8
    assert "checks (" in capsys.readouterr().err
    results = load.load(tmp_path)
    assert list(results.calibrations.values()) == [found] and not results.left_out


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
