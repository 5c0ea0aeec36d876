"""`attnops bench camvid`: its plan, and what it makes of finished runs."""

from __future__ import annotations

import json

import pytest
import torch

pytest.importorskip("lightning")

from attnops.benchmarks.camvid import cost, deployed, grids, plan, table, train
from attnops.benchmarks.measure.glibc import SETTINGS
from attnops.benchmarks.report.records import Document
from attnops.models import create_model, deploy
from attnops.training.recipes import list_recipes


def finish(runs, run, miou):
    """Leave what a training and its evaluation leave."""
    folder = plan.folder_of(runs, run.name)
    scores = {"mIoU": miou, "accuracy": 0.8, "IoU": {"sky": 0.9, "car": None}, "images": 233}
    for name in ("eval-camvid-test", "eval-camvid-test-scales"):
        (folder / name).mkdir(parents=True)
        (folder / name / "scores.json").write_text(json.dumps(scores))
        scores["mIoU"] += 0.0625
    lines = ["step,train/loss,val/mIoU", "10,2.5,", "20,1.25,", "20,,0.125"]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")


def test_the_plan_names_recipes_and_holds_every_family_twice():
    assert {run.network.recipe for run in plan.RUNS} <= set(list_recipes())
    assert len({run.name for run in plan.RUNS}) == len(plan.RUNS)
    same = [run for run in plan.RUNS if run.part == plan.SAME_BUDGET]
    assert {(r.network, r.heads) for r in same} == {
        (n, h) for n in plan.NETWORKS for h in ("fast", "reference")
    }
    assert {run.steps for run in same} == {plan.SHORT}
    names = [run.name for run in plan.RUNS]
    for index, run in enumerate(plan.RUNS):  # what a run begins with is trained before it
        assert run.begins is None or run.begins in names[:index]


def test_options(tmp_path):
    fast = next(run for run in plan.RUNS if run.begins)
    options = plan.options_of(fast, None, tmp_path)
    assert options[options.index("--model.weights") + 1].endswith(f"{fast.begins}-0001/last.ckpt")
    lite = next(run for run in plan.RUNS if run.network.pretrained)
    options = plan.options_of(lite, tmp_path / "w.pth", tmp_path)
    assert options[options.index("--model.options.pretrained") + 1] == str(tmp_path / "w.pth")
    assert "--model.options.pretrained" not in plan.options_of(lite, None, tmp_path)


def test_tables_of_finished_runs(tmp_path, capsys):
    runs = [plan.RUNS[0], *(run for run in plan.RUNS if run.part == plan.LONGER)]
    for index, run in enumerate(runs):
        finish(tmp_path / "runs", run, 0.25 + 0.125 * index)
    costs = [
        {"network": runs[0].network.title, "heads": heads, "malloc": malloc, "p50": ms}
        | {"peak_mib": 100.0}
        for malloc in SETTINGS
        for heads, ms in (("fast", 500.0), ("reference", 1000.0))
    ]
    out = tmp_path / "out"
    document = Document()
    labels = {"network": "N", "run": "r", "dtype": "float32", "equal": 0.5, "logits_error": 2e-5}
    labels = [labels | {"images": 32}]
    document.parts[grids.PART] = {"runs": [], "costs": costs, "deployed": labels}
    document.save(out / "camvid.json")
    arguments = ["--root", "x", "--runs", tmp_path / "runs", "--only", "report", "--out", out]
    assert table.main(list(map(str, arguments))) == 0
    text = (out / "camvid.md").read_text()
    assert (
        f"| {runs[0].network.title} | fast | 0.250 | 0.800 | 0.5 | 2.00 | 0.5 | 2.00 | 100 |"
        in text
    )
    assert "| SegNeXt-T | fast | 1500 + 2500 | 0.625 | 0.800 | 0.688 |" in text
    assert "| SegNeXt's decoder, EfficientNet-Lite0 | fast | 1370 + 2500 + 2600 | 0.875 |" in text
    assert "| N | r | float32 | 50.000 % | 2.0e-05 | 32 |" in text
    assert "| sky | 0.900 |" in text and "| car | - |" in text
    assert (out / "camvid.png").stat().st_size > 10_000
    (found, *_) = train.collect(tmp_path / "runs")
    assert found["loss"] == [[10, 2.5], [20, 1.25]] and found["val_miou"] == [[20, 0.125]]
    capsys.readouterr()


def test_costs_of_one_network_beside_the_others(tmp_path, monkeypatch, capsys) -> None:
    def rows(ms, *networks):
        return [
            {"network": n.title, "heads": heads, "malloc": malloc, "p50": ms}
            for n in networks
            for malloc in SETTINGS
            for heads in plan.HEADS
        ]

    asked = []

    def measure(root, pretrained, seconds, networks):
        asked.append([n.stem for n in networks])
        return rows(250.0, *networks)

    monkeypatch.setattr(cost, "measure", measure)
    document = Document()
    document.parts[grids.PART] = {"runs": [], "costs": rows(500.0, *plan.NETWORKS[:3])}
    document.save(tmp_path / "camvid.json")
    arguments = ["--root", "x", "--runs", tmp_path, "--only", "cost", "--out", tmp_path]
    assert table.main([*map(str, arguments), "--cost-of", "galdv1_lite0"]) == 0
    assert asked == [["galdv1_lite0"]]
    costs = Document.load(tmp_path / "camvid.json").parts[grids.PART]["costs"]
    assert [row["p50"] for row in costs] == 4 * [500.0] + 4 * [250.0] + 4 * [500.0]
    capsys.readouterr()


def test_only_what_is_missing_runs(monkeypatch, tmp_path) -> None:
    commands = []
    monkeypatch.setattr(train, "_command", lambda heads, line: commands.append(line))
    for run in plan.RUNS:
        finish(tmp_path, run, 0.5)
    train.train_missing(tmp_path, tmp_path, None, workers=1)
    assert commands == []
    longer = next(run for run in plan.RUNS if run.part == plan.LONGER)
    whole, scales = train._scores_files(tmp_path, longer)
    scales.unlink()
    train.train_missing(tmp_path, tmp_path, None, workers=1)
    assert [line[0] for line in commands] == ["eval"] and "--flip" in commands[0]
    whole.unlink()
    commands.clear()
    train.train_missing(tmp_path, tmp_path, None, workers=1)
    assert [line[0] for line in commands] == ["train", "eval", "eval"]


def test_the_longest_run_of_every_network_is_deployed(tmp_path) -> None:
    for name in ("segnext_t_fast", "segnext_t_reference", "segnext_t_1500", "ann_lite0_reference"):
        plan.folder_of(tmp_path, name).mkdir()
        plan.checkpoint_of(tmp_path, name).touch()
    assert [run.name for run in deployed.trained(tmp_path)] == ["segnext_t_1500"]


def test_labels_of_a_deployed_checkpoint(tmp_path, monkeypatch) -> None:
    """The share of equal labels, with a deployment that changes those of one image in two."""
    network = create_model("segnext_t", num_classes=11)
    images = torch.randint(256, (4, 3, 64, 96), dtype=torch.uint8)
    monkeypatch.setattr(deployed, "load_trained", lambda path: (network, None))
    split = {"test": [(image, None) for image in images]}
    data = type("Data", (), {"split": lambda self, name: split[name]})()
    monkeypatch.setattr(deployed, "open_data", lambda root: data)

    def broken(model, dtype, compile, seed):
        made = deploy(model, dtype=dtype, compile=False, seed=seed, keep_memory=False)

        class Half:
            calls = 0

            def __call__(self, image):
                self.calls += 1
                return made(image) if self.calls % 2 else torch.full((1, 64, 96), 11)

            logits = staticmethod(made.logits)

        return Half()

    monkeypatch.setattr(deployed, "deploy", broken)
    row = deployed.compare(tmp_path, "float32", tmp_path, 32)
    assert row["images"] == 4 and row["equal"] == pytest.approx(0.5, abs=1e-3)
    assert 0 <= row["logits_error"] < 1e-4
