"""`attnops bench serving`: rows, ratios, losses shown, and contenders' failures kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from attnops.benchmarks.measure.floor import Rates
from attnops.benchmarks.measure.timing import Timing
from attnops.benchmarks.report import musts
from attnops.benchmarks.report.records import Document
from attnops.benchmarks.serving import contenders, grids, measure, replaced, table

RATES = Rates("float32", copy_gb_s=10.0, matmul_gflop_s=100.0)
MS = {"OpenVINO": 100.0, "onnxruntime": 80.0, "attnops predict": 160.0, "attnops deploy": 40.0}


def test_rows_and_ratios(tmp_path, monkeypatch, capsys):
    asked = []

    def child(arguments, threads, compiled):
        asked.append((tuple(arguments), threads, compiled))
        rows = [
            {"name": name, "p20": ms, "p50": ms, "p80": ms, "repeats": 5, "ready_s": 1.5}
            | {"agreement": 0.999, "note": ""}
            for name, ms in MS.items()
        ]
        rows.append({"name": "torch.compile, published chain", "note": "no compiler"})
        return {setting: copy.deepcopy(rows) for setting in arguments[4].split(",")}

    monkeypatch.setattr(table, "_child", child)
    monkeypatch.setattr(table, "measure_rates", lambda *_: RATES)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # tests fork after this one
    arguments = ["--networks", "segnext_t", "--dtypes", "float32", "--size", "64x96"]
    files = ["--json", str(tmp_path / "s.json"), "--markdown", str(tmp_path / "s.md")]
    assert table.main([*arguments, "--threads", "2", *files]) == 0
    ((process, threads, _),) = asked  # one for both settings of glibc
    assert (process[0], process[2], process[4]) == ("segnext_t", "64x96", "default,kept")
    assert threads == 2
    document = Document.load(tmp_path / "s.json")
    best = {row.name: grids.best_peer(row) for row in document.rows if row.p50}
    assert best["attnops deploy"] == 2.0 and best["attnops predict"] == 0.5
    for row in (row for row in document.rows if row.p50):
        assert row.gmac > 0 and row.floor_ms == pytest.approx(20 * row.gmac)
        assert row.floor_percent == pytest.approx(100 * row.floor_ms / row.p50)
    text = (tmp_path / "s.md").read_text()
    assert "attnops predict | 160 [160, 160] | 0.5 |" in text  # a loss is shown as one
    assert "no compiler" in text and "99.90 %" in text
    compiled = ["--compiled", str(tmp_path / "code")]
    table.main([*arguments, "--malloc", "kept", *compiled, *files])  # again, not twice there
    assert asked[-1][2] == tmp_path / "code/segnext_t-float32" != asked[0][2]
    ready = {r.ready_s for r in Document.load(tmp_path / "s.json").rows if r.name == "OpenVINO"}
    assert ready == {1.5}  # nothing was there yet
    asked[-1][2].mkdir(parents=True)
    table.main([*arguments, "--malloc", "kept", *compiled, *files])
    rows = Document.load(tmp_path / "s.json").rows
    ready = {dict(row.options)["malloc"]: row.ready_s for row in rows if row.name == "OpenVINO"}
    assert len(rows) == 10 and ready == {"default": 1.5, "kept": None}
    asked.clear()

    def peak(arguments, *_):
        asked.append(arguments)
        return {"peak_mib": len(asked)}

    monkeypatch.setattr(table, "_child", peak)
    table.main([*arguments, "--peaks", *compiled, *files])
    assert [given[-1] for given in asked] == list(MS)  # what was timed, with glibc as it is
    found = Document.load(tmp_path / "s.json").rows
    peaks = [(row.p50, row.peak_mib) for row in found if row.peak_mib]
    assert peaks == [(ms, index + 1) for index, ms in enumerate(MS.values())] and len(found) == 10
    chosen = ["--contenders", "attnops deploy", "OpenVINO"]
    monkeypatch.setattr(table, "_child", child)
    table.main([*arguments, *chosen, "--malloc", "kept"])
    assert asked[-1][0][3:] == ("4.0", "kept", "attnops deploy", "OpenVINO")
    for unknown in (["--networks", "resnet"], ["--contenders", "TensorRT"]):
        with pytest.raises(SystemExit):
            table.main(unknown)
    capsys.readouterr()


def test_a_contender_that_fails_leaves_a_note(monkeypatch):
    def refuses(*_):
        raise contenders.NotHere("not on this machine")

    def breaks(*_):
        raise KeyError("gone")

    known = {"attnops predict": contenders.predict, "OpenVINO": refuses, "onnxruntime": breaks}
    monkeypatch.setattr(measure, "CONTENDERS", known)
    told = []
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: told.append(1) or True)
    sides, settings = (64, 64), ["kept", "default"]
    found = measure.measure("segnext_t", "float32", sides, 0.01, settings=settings)
    assert list(found) == ["default", "kept"] and told == [1]
    for rows in ({row["name"]: row for row in rows} for rows in found.values()):
        assert rows["attnops predict"]["agreement"] == 1.0 and rows["attnops predict"]["p50"] > 0
        assert rows["OpenVINO"]["note"] == "not on this machine"
        assert rows["onnxruntime"]["note"].startswith("KeyError")
    assert found["default"][0]["p50"] != found["kept"][0]["p50"]  # each has its own
    monkeypatch.setattr(measure, "keep_freed_memory", lambda: False)
    with pytest.raises(RuntimeError, match="--malloc default"):
        measure.measure("segnext_t", "float32", sides, 0.01, ["attnops predict"], ["kept"])


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(images)).argmax(1)


@pytest.mark.slow
def test_a_frozen_network_is_compiled_for_itself(monkeypatch) -> None:
    """Beside the one that is not, whose code it would otherwise get."""
    from torch._inductor import compile_fx

    frozen, freeze = [], compile_fx.fw_compiler_freezing
    monkeypatch.setattr(
        compile_fx, "fw_compiler_freezing", lambda *a, **k: frozen.append(1) or freeze(*a, **k)
    )
    network, images = Tiny().eval(), torch.randn(1, 3, 16, 16)
    monkeypatch.setattr(contenders, "plain", lambda network, images, dtype: copy.deepcopy(network))
    makers = (contenders.compiled, contenders.frozen)
    calls = [make(network, images, "float32") for make in makers]
    for _ in range(2):
        for call in calls:
            assert torch.equal(call(images), network(images))
    assert frozen == [1]


def test_rows_of_a_segmentor_with_replaced_parts() -> None:
    """Both in one process, and what is required of them."""
    document, of = Document(), Timing.of
    times = {"logits": (70.0, 50.0), "labels": (90.0, 60.0), replaced.STEP: (300.0, 150.0)}
    for task, (theirs, ours) in times.items():
        found = {replaced.THEIRS: of([theirs]), replaced.REPLACED: of([ours])}
        replaced.add_rows(document, task, (512, 512), "kept", found)
    assert document.rows[1].ratios == {replaced.THEIRS: 1.4}
    found = [goal for goal in musts.of(document.rows) if goal.measured is not None]
    assert [(goal.measured, goal.met) for goal in found] == [(1.4, True), (1.5, False), (2.0, True)]
    assert found[2].where == "2x3x256x256 float32, memory kept"


def test_prepared_networks_label_an_image_the_same_twice():
    """And in PyTorch's own operators alone, which torch.compile of the published chain gets."""
    model, images = measure.prepare("segnext_t", (64, 64))
    with torch.no_grad():
        labels = model.predict(images)
        assert torch.equal(model.predict(images), labels)
        plain = contenders.plain(model, images, "float32")
        assert (plain(images) == labels).double().mean() > 0.999
    targets = {str(node.target) for node in plain.graph.nodes}
    assert "aten.conv2d.default" in targets and not any("attnops" in name for name in targets)
