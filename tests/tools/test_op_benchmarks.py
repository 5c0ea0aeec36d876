"""The benchmarks of single ops: agreement before timing, cases on file, rows of results."""

from __future__ import annotations

import dataclasses
import json
import os
from types import SimpleNamespace

import pytest
import torch

import attnops
from attnops.benchmarks.__main__ import OPS
from attnops.benchmarks.measure import agreement as agree
from attnops.benchmarks.measure import floor, glibc
from attnops.benchmarks.measure.memory import MemoryUse
from attnops.benchmarks.ops import cases as op_cases
from attnops.benchmarks.ops import microbench, several
from attnops.benchmarks.pages import costs, readme
from attnops.benchmarks.report import children
from attnops.benchmarks.report import records as record
from attnops.benchmarks.report.running import running

CPU = torch.device("cpu")
RATES = {"copy_gb_s": 20.0, "matmul_gflop_s": 1e9}


def test_disagreeing_op_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    case = op_cases.OpCase("pyramid_pool", (1, 8, 20, 12), direction="forward+backward")
    inputs = case.inputs(CPU)
    _, error = op_cases.checked_step(case, op_cases.OURS, inputs)
    assert error < 1e-6
    shifted = lambda x: attnops.pyramid_pool(x.roll(1, dims=3))  # noqa: E731
    monkeypatch.setitem(op_cases.FUNCTIONS["pyramid_pool"], op_cases.OURS, shifted)
    with pytest.raises(agree.Disagreement):
        op_cases.checked_step(case, op_cases.OURS, inputs)


SMALL = {
    "nmf": ((2, 16, 60), {"rank": 4, "steps": 2, "grad": "unrolled"}),
    "local_attention": ((2, 16, 19, 23), {"kernel": 3, "dilation": 2}),
    "feed_forward": ((2, 8, 9, 13), {"hidden": 20}),
    "upsample_gate": ((2, 16, 19, 23), {"side": 4}),
    "merge_scales": ((2, 6, 19, 19), {"sides": (9, 5)}),
    "upsample_cross_entropy": ((2, 6, 9, 7), {"factor": 3}),
    "upsample_argmax": ((2, 6, 9, 7), {"factor": 3}),
}


def small_case(op: str, layout: str = "contiguous") -> op_cases.OpCase:
    shape, options = SMALL.get(op, ((2, 16, 19, 23), {}))
    has_gradient = op_cases.DEFINITIONS[op].differentiable > 0
    direction = op_cases.DIRECTIONS[has_gradient]
    return op_cases.OpCase(op, shape, "float32", layout, direction, tuple(options.items()))


@pytest.mark.parametrize("op", op_cases.FUNCTIONS)
@pytest.mark.parametrize("layout", op_cases.LAYOUTS)
def test_op_contenders_agree(monkeypatch: pytest.MonkeyPatch, op: str, layout: str) -> None:
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    case = small_case(op, layout)
    for contender in op_cases.FUNCTIONS[op]:
        if contender != op_cases.NATTEN:
            _, error = op_cases.checked_step(case, contender, case.inputs(CPU))
            assert error < 2e-5
    assert case.moved_bytes() > 0 and case.macs() >= 0


def test_every_op_has_a_benchmark() -> None:
    assert set(OPS) == set(op_cases.DEFINITIONS) == set(attnops.backends())


@pytest.mark.parametrize("op", ["pyramid_pool", "anchor_attention"])
def test_quick_runs_take_both_widths_of_the_pyramid(op: str) -> None:
    """In both formats: eager PyTorch is four times slower in one of them."""
    found = {(case.shape[1], case.layout) for case in op_cases.all_cases(op, quick=True)}
    assert found == {(width, layout) for width in (256, 2048) for layout in op_cases.LAYOUTS}
    assert len({case.shape for case in op_cases.all_cases("nmf", quick=True)}) == 1


@pytest.mark.parametrize("op", op_cases.FUNCTIONS)
def test_cases_survive_json(op: str) -> None:
    for case in op_cases.all_cases(op):
        described = json.loads(json.dumps(op_cases.facts(case)))
        assert op_cases.case_of(op, described) == case


def test_microbenchmark_results_become_rows() -> None:
    case = op_cases.OpCase("pyramid_pool", (1, 256, 96, 96))
    entries = [
        {
            "extra_info": {
                "op": case.op,
                "contender": contender,
                "relative_error": 0.0,
                "backend": "",
                **op_cases.facts(case),
            },
            "stats": {"data": [seconds, seconds]},
        }
        for contender, seconds in (("eager", 4e-3), ("attnops", 1e-3))
    ]
    document = record.Document()
    document.parts["rates"] = {
        "float32": {"dtype": "float32", "copy_gb_s": 20.0, "matmul_gflop_s": 100.0}
    }
    document.parts["copies"] = {str(2**23): 40.0}  # of the op's own size
    _, ours = microbench.rows_from_pytest(document, {"benchmarks": entries})
    assert ours.p50 == pytest.approx(1.0) and ours.ratios == {"eager": pytest.approx(4.0)}
    moved = 4 * 256 * (96 * 96 + 110)
    assert ours.floor_percent == pytest.approx(100 * moved / 40e9 / 1e-3)
    assert "| attnops |" in microbench.as_markdown(document.rows)


def test_floors_take_copies_of_the_size_of_the_larger_pass(monkeypatch) -> None:
    sizes: list[int] = []
    monkeypatch.setattr(
        microbench, "measure_copy", lambda device, moved: sizes.append(moved) or 5.0
    )
    document = record.Document(parts={"rates": {"float32": {"dtype": "float32"} | RATES}})
    shape, map_bytes = (1, 256, 64, 64), 4 * 2**20
    for direction in (*op_cases.DIRECTIONS, "forward"):
        case = op_cases.OpCase("group_attention", shape, direction=direction)
        row = microbench.row_of(document, case, "attnops", CPU)
        row.p50 = 10.0
        microbench.put_limits(document, case, row, CPU)
        assert row.floor_ms == pytest.approx(case.moved_bytes() / 5e6)
    assert sizes == [4 * map_bytes, 8 * map_bytes]  # of the backward, not of both


def test_sizes_of_copies() -> None:
    assert floor.size_class(3) == floor.SMALLEST and floor.size_class(1e12) == floor.LARGEST
    assert floor.size_class(17e6) == 2**24 and floor.size_class(2**20 * 1.5) == 2**21
    assert floor.measure_copy(CPU, floor.SMALLEST) > 0


def test_both_settings_of_glibc_are_told_apart(monkeypatch, tmp_path) -> None:
    """Rows of both processes, compared within each, in the tables and on the pages."""

    def child(line: list[str], env: dict[str, str]) -> SimpleNamespace:
        kept = all(env.get(name) == value for name, value in glibc.KEPT.items())
        memory = [] if kept else ["--memory"]  # which the setting does not change
        assert line[3:-2] == ["nmf", "--quick", *memory, "-k", "x"] and line[-2] == "--json"
        document = record.Document()
        for name, p50 in (("eager", 6.0), ("attnops", 2.0 if kept else 3.0)):
            facts = op_cases.facts(op_cases.all_cases("nmf", quick=True)[0])
            row = document.new_row("nmf", name, "cpu", p50=p50, p20=p50, p80=p50, **facts)
            if memory:
                row.put_memory(MemoryUse(2**22, 2**21, "VmHWM"))
        record.put_ratios(document.rows, ["eager"])
        document.save(line[-1])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(children.subprocess, "run", child)
    file = tmp_path / "cpu-x" / "nmf.json"
    options = ["--quick", "--memory", "--malloc", "default,kept", "--json", str(file), "-k", "x"]
    with running(["nmf", *options]):
        assert microbench.main(["nmf", *options]) == 0
    document = record.Document.load(file)
    assert document.command == ["nmf", *options] and document.seconds >= 0
    rows = document.rows
    assert [row.memory_above_inputs for row in rows] == [4.0, 4.0, None, None]
    assert [row.malloc for row in rows] == ["default", "default", "kept", "kept"]
    assert [row.ratios.get("eager") for row in rows] == [None, 2.0, None, 3.0]
    assert rows[0].input != rows[2].input
    text = microbench.as_markdown(rows)
    assert "forward, memory kept | attnops" in text and microbench.MEMORY_ONCE in text
    lines = costs.grid(map(dataclasses.asdict, rows))
    assert [line[4] for line in lines] == ["2", "3"] and "memory kept, forward" in lines[1][0]
    assert "peak beyond the input, with glibc as it is." in costs.section("nmf", tmp_path)
    assert "| 2; memory kept: 3 |" in readme.tables(["nmf"], tmp_path)["ops"]


def test_several_ops_run_each_in_a_fork(monkeypatch, tmp_path, capfd) -> None:
    """A file for each op, both settings in it, peaks under the first; what fails is left out."""
    ready, here = [], os.getpid()

    def timed(document: record.Document, op: str, dtype: str, quick: bool) -> int:
        assert os.getpid() != here and quick
        if op == "nmf":
            return 3
        facts = op_cases.facts(op_cases.all_cases(op, (dtype,), quick)[0])
        document.new_row(op, "eager", "cpu", p50=2.0, p20=2.0, p80=2.0, **facts)
        return 0

    def peaks(rows: list[record.Row], start: str, threads: int) -> None:
        assert (start, threads) == ("fork", 2)
        for row in rows:
            row.put_memory(MemoryUse(2**21, 0, "VmHWM"))

    def child(line: list[str], env: dict[str, str]) -> SimpleNamespace:
        assert line[3] == "ops"
        return SimpleNamespace(returncode=several.main(line[4:]))

    monkeypatch.setattr(microbench, "run_pytest", timed)
    monkeypatch.setattr(microbench, "put_cpu_memory", peaks)
    monkeypatch.setattr(several, "import_module", ready.append)
    monkeypatch.setattr(several.subprocess, "run", child)
    ops, options = ["strip_conv", "nmf", "merge_scales"], ["--quick", "--memory"]
    options += ["--malloc", "default,kept"]
    given = [*ops, *options, "--threads", "2", "--out", str(tmp_path)]
    assert several.main(given) == 3
    assert len(ready) == 2 * 3  # once for each setting
    assert {file.name for file in tmp_path.iterdir()} == {
        f"{op}.{suffix}" for op in ("strip_conv", "merge_scales") for suffix in ("json", "md")
    }
    document = record.Document.load(tmp_path / "merge_scales.json")
    assert children.without(document.command, ["--threads"]) == ["ops", "merge_scales", *options]
    assert document.seconds >= 0
    assert [row.malloc for row in document.rows] == ["default", "kept"]
    assert [row.memory_above_inputs for row in document.rows] == [2.0, None]
    with pytest.raises(SystemExit):
        several.main(["pooling", "--out", str(tmp_path)])
    assert "no op 'pooling'" in capfd.readouterr().err


@pytest.mark.slow
def test_microbenchmarks_run(
    tmp_path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pytest_benchmark")
    monkeypatch.delenv("PYTEST_XDIST_WORKER", raising=False)  # the benchmarks' own run has no xdist
    result = tmp_path / "ops.json"
    options = ["--quick", "--json", str(result), "-k", "contiguous and not backward"]
    assert microbench.main(["pyramid_pool", *options]) == 0
    names = [row.name for row in record.Document.load(result).rows]
    assert names == ["eager", "compiled", "attnops"]
