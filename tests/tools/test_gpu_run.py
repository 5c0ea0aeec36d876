"""`make gpu` without a GPU: order, limits of time, broken tasks, files."""

from __future__ import annotations

import json
import sys
import time

import pytest

from attnops.benchmarks.gpu import (
    calibration,
    device_tests,
    dry,
    plan,
    supervise,
    worker,
)
from attnops.benchmarks.gpu import run as gpu
from attnops.benchmarks.ops import cases as op_cases
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


def test_files_of_tests_run_on_their_own(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")  # a second a file
    folder = tmp_path / "tests"
    folder.mkdir()
    (folder / "test_a.py").write_text("def test_1(): pass\ndef test_2(): assert 0\n")
    (folder / "test_b.py").write_text("import os\ndef test_1(): os._exit(9)\n")
    files = sorted(folder.iterdir())
    found = device_tests.run_tests(tmp_path, files, 60, arguments=())
    whole = device_tests.together(found, 1.0)
    assert whole.counts == {"passed": 1, "failed": 1}
    assert whole.failures == ["tests/test_a.py::test_2"]
    assert whole.crashed == ["tests/test_b.py::test_1 (exit status 9)"]
    late = device_tests.run_tests(tmp_path, files, 1, arguments=())
    assert [one.unfinished for one in late.values()] == [[name] for name in late]


def test_libraries_to_compare_with_shadow_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", "/a:/b")
    monkeypatch.setenv(supervise.PEERS, "/peers")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = supervise.environment()
    assert found["PYTHONPATH"] == "/a:/b:/peers" and "TRITON_INTERPRET" not in found
    monkeypatch.delenv("PYTHONPATH")
    assert supervise.environment()["PYTHONPATH"] == "/peers"


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
    tasks = [plan.Task("a", "op", n, {"op": n.split()[0], "backend": "cuda"}, 1.0) for n in names]
    return supervisor(tmp_path, **values).run(tasks)


def test_what_breaks_is_named_and_the_rest_goes_on(tmp_path) -> None:
    outcome = watched(tmp_path, "x 1", "y exit", "y 2", "z hang", "u lose", "v 1")
    assert outcome.done == 2
    assert "exit status 11" in outcome.failed["y exit"] and "fault" in outcome.failed["y exit"]
    assert outcome.failed["z hang"] == "no end after 1 s"
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
    monkeypatch.setattr(gpu, "age_of_this_process", lambda: 0.0)  # it is the whole suite's here
    some = ("local_attention", "strip_conv", "pyramid_pool", "upsample_argmax")
    core = [task for task in plan.core(AVAILABLE) if task.details.get("op", some[0]) in some]
    monkeypatch.setattr(plan, "core", lambda available: core)
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
    missing = [row for row in ours if not row.estimate_low]
    assert not missing, missing[0]
    assert all(row.ratios["eager, better layout"] > 3 for row in ours)
    assert found["all"]["rows"] > 10 and len(found["rows"]) >= found["all"]["rows"]
    text = next(p for p in tmp_path.rglob("*.md") if p.stem != "calibration").read_text()
    assert "| launch ms | static ms |" in text and "failed:** Disagreement" in text
    checked = document.parts["checks"]
    worst = max(one["output"] for one in checked.values())
    assert f"{len(checked)} agree with float64. The largest error is {worst:.2f} of" in text
    tables = list(dict.fromkeys((row.dtype, row.layout, row.shape[0]) for row in document.rows))
    assert tables[0] == ("bfloat16", "channels_last", 1) and tables[-1][2] == 8
    assert "checks (" in capsys.readouterr().err
    results = load.load(tmp_path)
    assert list(results.calibrations.values()) == [found] and not results.left_out
