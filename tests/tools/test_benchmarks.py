"""The benchmarks: analytic counts, fair peers, refusal to time what disagrees, results on file."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import attnops
from attnops.benchmarks import gald_table, networks
from attnops.benchmarks.apnb import cases as apnb_cases
from attnops.benchmarks.apnb import figure2, operations
from attnops.benchmarks.apnb import grid as apnb_grid
from attnops.benchmarks.apnb import run as apnb_run
from attnops.benchmarks.apnb.operations import Block
from attnops.benchmarks.measure import agreement as agree
from attnops.benchmarks.measure import backends_that_ran as used
from attnops.benchmarks.measure import memory, timing
from attnops.benchmarks.ops import cases as op_cases
from attnops.benchmarks.report import document_markdown as whole_report
from attnops.benchmarks.report import grid as present
from attnops.benchmarks.report import records as record
from attnops.nn import pyramid_attention

CPU = torch.device("cpu")
TINY = Block(13, 11, 2, channels=24, hidden=8)
CONTENDERS = {contender.name: contender for contender in apnb_cases.contenders(())}
OPTIONS = apnb_run.Options(
    sizes=((13, 11),),
    batches=(2,),
    channels=24,
    hidden=8,
    compile_modes=(),
    seconds=0.01,
    memory=False,
)


def new_document() -> record.Document:
    """A document with known rates, which need not be measured."""
    document = record.Document()
    document.parts["rates"] = {
        "float32": {"dtype": "float32", "copy_gb_s": 20.0, "matmul_gflop_s": 100.0}
    }
    return document


@pytest.fixture(scope="module")
def table() -> record.Document:
    """A table of tiny blocks, forward and backward, both layouts."""
    document = new_document()
    options = replace(OPTIONS, layouts=op_cases.LAYOUTS, directions=("forward", "forward+backward"))
    apnb_run.run(document, options, timing.Budget(None))
    return document


def test_counts_are_the_papers() -> None:
    small, large = Block(96, 96), Block(256, 128)
    assert operations.non_local_macs(small) / 1e9 == pytest.approx(57.98, abs=5e-3)
    assert operations.non_local_macs(large) / 1e9 == pytest.approx(601.3, abs=5e-2)
    assert operations.apnb_macs(small) / 1e9 == pytest.approx(15.01, abs=6e-3)
    assert operations.apnb_macs(large) / 1e9 == pytest.approx(53.39, abs=6e-3)
    assert operations.apnb_macs(large) / operations.apnb_macs(small) == pytest.approx(
        3.556, abs=1e-3
    )
    assert operations.printed("apnb", large)["gflops"] == 43.5
    assert operations.printed("apnb", replace(large, batch=8)) == {}


def _attention_flops(query, key, value, *args, out_shape=None, **kwargs) -> int:
    """From shapes: query `[B, 1, N, C]` or, for anchors, `[B, C, *spatial]`."""
    if len(key) == 4:
        return 2 * query[0] * query[2] * key[2] * (query[3] + value[3])
    return 2 * query[0] * math.prod(query[2:]) * key[2] * (query[1] + value[1])


@pytest.mark.parametrize("name", CONTENDERS)
def test_counts_are_what_runs(name: str) -> None:
    """PyTorch counts 2 operations a multiply-add."""
    block = Block(40, 36, 1, channels=256, hidden=128)
    mapping = {
        torch.ops.attnops.anchor_attention: _attention_flops,
        torch.ops.attnops.pyramid_pool: lambda *shapes, **_: 0,  # sums, no products
        torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    }
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    with torch.no_grad(), counter:
        CONTENDERS[name].make(block)(torch.randn(block.shape))
    # rel: the bias of a folded query is a product of its own, of Ĉ·S multiply-adds
    expected = pytest.approx(CONTENDERS[name].macs(block), rel=3e-4)
    assert counter.get_total_flops() / 2 == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", CONTENDERS)
def test_contenders_agree(name: str, dtype: torch.dtype) -> None:
    contender = CONTENDERS[name]
    x = apnb_cases.make_input(TINY, CPU, dtype, "channels_last")
    found = []
    for each in (CONTENDERS[contender.reference], contender):
        module = apnb_cases.make_module(each, TINY, CPU, dtype)
        step = apnb_cases.Step(module, x, "forward+backward")
        found.append((step(), step.gradient))
    (expected, gradient), (out, found_gradient) = found
    assert agree.check_same(name, out, expected) <= agree.TOLERANCE[dtype]
    strays = agree.RELU_STRAYS[dtype] if contender.function == "released" else 0.0
    agree.check_same(name, found_gradient, gradient, strays)


def test_check_notices_a_wrong_scale() -> None:
    """The input is such that a score wrong by 1 % shows in the output."""
    x = apnb_cases.make_input(Block(24, 20, 1, 256), CPU, torch.float32, "contiguous")
    anchors = attnops.pyramid_pool(x)
    right = attnops.anchor_attention(x, anchors, anchors, 0.02)
    agree.check_same("same", right.clone(), right)
    with pytest.raises(agree.Disagreement, match="relative error"):
        agree.check_same("scale", attnops.anchor_attention(x, anchors, anchors, 0.0202), right)


@pytest.mark.parametrize("what", ["one position", "nan", "shape", "zeros", "half"])
def test_check_refuses(what: str) -> None:
    dtype = torch.bfloat16 if what == "half" else torch.float32
    expected = torch.randn(2, 8, 40, 40).to(dtype)
    found = expected.clone()
    if what in ("one position", "half"):
        found[1, :, 7, 9] = expected[1, :, 9, 7]
    elif what == "nan":
        found[0, 0, 0, 0] = float("nan")
    elif what == "shape":
        found = found[:, :, :-1]
    else:
        expected, found = torch.zeros_like(expected), torch.zeros_like(found)
    with pytest.raises(agree.Disagreement):
        agree.check_same("contender", found, expected)


def test_disagreeing_block_is_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = pyramid_attention.anchor_attention
    monkeypatch.setattr(
        pyramid_attention, "anchor_attention", lambda *a, **k: right(*a, **k) * 1.001
    )
    document = new_document()
    apnb_run.run(document, OPTIONS, timing.Budget(None))
    for row in document.rows:
        if row.name in (apnb_cases.OURS_LINEAR, apnb_cases.OURS_RELEASED):
            assert row.p50 is None and "disagrees" in row.note
        else:
            assert row.p50 > 0 and not row.note


def test_labels_that_differ_are_a_disagreement() -> None:
    labels = torch.zeros(1, 100, 100, dtype=torch.long)
    other = labels.clone()
    other[0, 0, 0] = 1
    assert agree.check_labels("x", other, labels) == pytest.approx(1e-4)
    other[0, 0, 1] = 1
    with pytest.raises(agree.Disagreement, match=r"0\.020 %"):
        agree.check_labels("x", other, labels)


def test_refused_blocks_are_not_run() -> None:
    document = new_document()
    apnb_run.run(document, replace(OPTIONS, refused="its tests failed"), timing.Budget(None))
    ours = [row for row in document.rows if row.name.startswith("attnops")]
    assert len(ours) == 2 and all(row.p50 is None for row in ours)
    assert all("its tests failed" in row.note for row in ours)


def test_a_slow_contender_is_left_out_of_larger_inputs() -> None:
    """Its own time on the smaller input counts, not the rate of matrix products alone."""
    document = new_document()
    apnb_run.run(document, OPTIONS, timing.Budget(None))
    slow = next(r for r in document.rows if r.name == apnb_cases.EAGER_NON_LOCAL)
    slow.p50 = 60e3
    apnb_run.run(document, replace(OPTIONS, sizes=((26, 22),)), timing.Budget(600))
    larger = {r.name: r for r in document.rows if r.shape[2:] == [26, 22]}
    assert "--budget" in larger.pop(apnb_cases.EAGER_NON_LOCAL).note
    assert all(r.p50 for r in larger.values())


def test_rows_without_time_or_memory_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    document = new_document()
    apnb_run.run(document, OPTIONS, timing.Budget(0))
    assert all("--budget" in row.note and row.p50 is None for row in document.rows)
    monkeypatch.setattr(apnb_run, "free_bytes", lambda device: 100_000)
    document = new_document()
    apnb_run.run(document, replace(OPTIONS, batches=(1,)), timing.Budget(None))
    notes = {row.name: row.note for row in document.rows}
    assert "GiB are free" in notes[apnb_cases.EAGER_NON_LOCAL]
    # its reference did not run here, so a smaller one did
    sdpa = next(row for row in document.rows if row.name == apnb_cases.SDPA_NON_LOCAL)
    assert sdpa.p50 > 0 and sdpa.relative_error < 2e-5 and "24x20" in sdpa.checked_against


def test_memory_is_measured_however_little_time_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy loses repetitions, not columns."""
    budget, events = timing.Budget(1000), []
    time_cpu, make_module = timing.time_cpu, apnb_cases.make_module

    def make(contender, *arguments):
        events.append(("check", contender.name))
        return make_module(replace(contender, compiled=None), *arguments)

    def measure(build, timeout, name, **case):
        events.append(("memory", name))
        return memory.MemoryUse(3 * memory.MIB, memory.MIB, "made up")

    def times(calls, seconds):
        events.append(("time", ""))
        budget._end -= 1000  # all that is left
        return time_cpu(calls, seconds)

    for name, function in (("make_module", make), ("measure_cpu", measure), ("time_cpu", times)):
        monkeypatch.setattr(apnb_run, name, function)
    document = new_document()
    options = replace(OPTIONS, memory=True, compile_modes=("default",))
    apnb_run.run(document, options, budget)
    assert len(document.rows) == len(CONTENDERS) + 2 and budget.left() < 0
    for row in document.rows:
        assert row.memory_above_inputs == 3 and row.p50 > 0 and not row.note
    assert events[-1] == ("time", "")
    compiled = [i for i, (_, name) in enumerate(events) if name.startswith("compiled")]
    assert compiled[0] == 2 * len(CONTENDERS), "compiling waits for the others' memory"


def test_table_holds_every_fact(table: record.Document) -> None:
    assert len(table.rows) == 4 * len(CONTENDERS)
    for row in table.rows:
        assert 0 < row.p20 <= row.p50 <= row.p80 and row.repeats >= 2
        assert row.device and row.torch and row.date and row.threads
        assert (row.floor_percent is not None) == (row.direction == "forward")
        if row.name != CONTENDERS[row.name].reference:
            assert row.checked_against and row.relative_error < 2e-5
        assert bool(row.backend) == row.name.startswith("attnops")
    ours = next(row for row in table.rows if row.name == apnb_cases.OURS_LINEAR)
    eager = next(row for row in table.rows if row.name == apnb_cases.EAGER_LINEAR)
    assert ours.ratios[eager.name] == pytest.approx(eager.p50 / ours.p50)


def test_results_survive_json(table: record.Document, tmp_path) -> None:
    table.save(tmp_path / "deep" / "results.json")
    assert record.Document.load(tmp_path / "deep" / "results.json") == table
    (tmp_path / "old.json").write_text('{"format": 0}')
    with pytest.raises(ValueError, match="format 1"):
        record.Document.load(tmp_path / "old.json")


def test_table_renders(table: record.Document) -> None:
    grids = list(apnb_grid.grids(table.rows))
    assert len(grids) == 4
    text = whole_report.as_markdown(table)
    for name in CONTENDERS:
        assert text.count(f"| {name} |") == 4
    assert "3.556" in text and "Titan Xp" in text
    widths = {len(row) for grid in grids for row in (grid.header, *grid.cells)}
    assert widths == {len(grids[0].header)} or len(widths) == 2


def allocate(mebibytes: int, output: int) -> memory.Case:
    """A call that touches a temporary and returns an output, of known sizes."""

    def call() -> torch.Tensor:
        torch.ones(mebibytes * memory.MIB // 4).sum()
        temporary = torch.ones(mebibytes * memory.MIB // 4)
        out = torch.ones(output * memory.MIB // 4)
        return out + temporary[0]

    return memory.Case(call, lambda: torch.ones(1000).sum())


def fail() -> memory.Case:
    raise ValueError("no such case")


def test_memory_sees_an_allocation() -> None:
    use = memory.measure_cpu(allocate, timeout=100, mebibytes=64, output=16)
    assert use.output == 16 * memory.MIB
    # temporary, and the output twice (the sum is fresh)
    assert 96 * memory.MIB <= use.above_inputs <= 102 * memory.MIB
    assert use.above_inputs_and_output == use.above_inputs - use.output


def test_memory_says_what_went_wrong() -> None:
    with pytest.raises(memory.MemoryUnknown, match="no such case"):
        memory.measure_cpu(fail, timeout=100)


def test_calls_are_timed_in_turn() -> None:
    order: list[str] = []
    calls = {name: lambda name=name: order.append(name) for name in "ab"}
    timings = timing.time_cpu(calls, seconds=10, most=5)
    assert order == ["a", "b"] * 6  # one to warm up
    assert all(t.repeats == 5 and t.p20 <= t.p50 <= t.p80 for t in timings.values())


def test_used_backends_are_what_ran() -> None:
    x = torch.randn(1, 4, 9, 9)
    with used.recorded_backends() as names, attnops.use_backend("reference"):
        attnops.pyramid_pool(x)
    assert names == {"pyramid_pool": "reference"}
    assert used.in_words({"a": "cpu", "b": "reference"}) == "a: cpu, b: reference"


@pytest.mark.parametrize(
    ("operation", "kind"),
    [
        ("aten::mkldnn_convolution", "convolutions"),
        ("aten::bmm", "matrix products"),
        ("aten::_softmax", "softmax"),
        ("aten::_adaptive_avg_pool2d", "pooling"),
        ("attnops_cpu::pyramid_pool", "pooling"),
        ("attnops::anchor_attention", "fused attention"),
        ("aten::copy_", figure2.OTHER),
    ],
)
def test_operations_have_a_kind(operation: str, kind: str) -> None:
    assert figure2.kind_of(operation) == kind


def test_figure2_splits_the_time(tmp_path) -> None:
    document = record.Document()
    found = figure2.measure(document, TINY, CPU, torch.float32, repeats=2)
    eager, ours = (found["blocks"][f"{name} linear"] for name in ("eager APNB", "attnops APNB"))
    assert eager["convolutions"] > 0 and eager["softmax"] > 0 and eager["fused attention"] == 0
    assert ours["convolutions"] == 0 and ours["fused attention"] > 0
    assert eager["total"] == pytest.approx(sum(eager[kind] for kind in figure2.KINDS))
    json.dumps(document.to_json())
    plots = pytest.importorskip("attnops.benchmarks.report.plots")
    plots.plot_kinds(found, tmp_path / "figure2.png")
    assert (tmp_path / "figure2.png").stat().st_size > 10_000


def test_networks() -> None:
    document = record.Document()
    tasks = (networks.Task("predict", 1, (64, 64)), networks.Task("training step", 2, (64, 64)))
    networks.measure(document, ["segnext_t"], torch.device("cpu"), 0.01, tasks)
    rows = document.rows
    assert len(rows) == 8 and all(row.p50 > 0 for row in rows)
    ours = [row for row in rows if row.name == "attnops" and row.direction == "predict"]
    best = min(row.p50 for row in rows if row.name == "reference" and row.direction == "predict")
    assert [row.ratios["reference"] for row in ours] == [best / row.p50 for row in ours]
    text = present.markdown(networks.grid(document))
    assert text.count("| segnext_t, training step, 2x3x64x64 |") == 4


def test_gald_table(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gald_table, "SHAPE", (1, 2048, 17, 16))
    result = tmp_path / "gald.json"
    options = ["--seconds", "0.01", "--json", str(result), "--markdown", str(tmp_path / "gald.md")]
    assert gald_table.main(options) == 0
    rows = record.Document.load(result).rows
    assert len(rows) == 8 and all(row.p50 > 0 for row in rows)
    parameters = {row.name: row.options[0][1] for row in rows}
    distribution = parameters["+ ASPP + LDv1"] - parameters["+ ASPP"]
    assert distribution == pytest.approx(0.018432)
    text = (tmp_path / "gald.md").read_text()
    assert "| + ASPP + LDv2 |" in text and "| +2.3 M |" in text
