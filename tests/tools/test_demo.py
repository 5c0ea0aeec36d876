"""`make demo`: attention on a photograph, and a short training with fast and reference heads."""

from __future__ import annotations

import sys

import pytest
import torch

import attnops

demo = pytest.importorskip("attnops.benchmarks.demo.run")
demo_attention = pytest.importorskip("attnops.benchmarks.demo.attention")
plots = pytest.importorskip("attnops.benchmarks.report.plots")


def test_painted_attention_lies_on_the_pooled_bins() -> None:
    height, width, sizes = 21, 34, (1, 3, 8)
    x = torch.randn(1, 2, height, width)
    boxes = demo_attention.anchor_boxes(height, width, sizes)
    means = [x[0, :, top:bottom, left:right].mean((1, 2)) for top, bottom, left, right in boxes]
    pooled = attnops.pyramid_pool(x, sizes)[0]
    torch.testing.assert_close(torch.stack(means, dim=1), pooled)
    weights = torch.rand(len(boxes), 3).softmax(dim=0)
    maps = demo_attention.paint(weights, height, width, sizes)
    torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3))


def test_demo_pixels_attend_to_what_looks_alike(tmp_path) -> None:
    photo = torch.zeros(48, 64, 3).numpy()
    photo[:, :32] = (0.9, 0.1, 0.1)  # red on the left, blue on the right
    photo[:, 32:] = (0.1, 0.1, 0.9)
    attention = demo_attention.attend(photo, ((20, 5, "red"), (30, 60, "blue")))
    left, right = attention.maps[:, :, :32].sum((1, 2)), attention.maps[:, :, 32:].sum((1, 2))
    assert left[0] > 0.9 and right[1] > 0.9
    assert abs(attention.reconstruction - photo).mean() < 0.1
    demo_attention.draw(attention, tmp_path / "attention.png")
    assert (tmp_path / "attention.png").stat().st_size > 10_000


@pytest.fixture
def training():
    return pytest.importorskip("attnops.benchmarks.demo.training")


@pytest.fixture
def recipe():
    """Of a network of milliseconds a step."""
    yaml = pytest.importorskip("yaml")
    tiny = pytest.importorskip("tiny_training")
    with tiny.registered():
        yield yaml.safe_load(tiny.CONFIG)


def test_both_trainings_start_alike_and_see_the_same_images(training, recipe) -> None:
    fast, reference = (training.Training(heads, recipe, 9.0) for heads in training.HEADS)
    assert fast.loss == pytest.approx(reference.loss, rel=1e-4)
    assert reference.ran_on == "reference"
    if attnops.backends()["nmf"]["cpu"]:
        assert fast.ran_on == "cpu"
    for one, other in zip(next(fast.batches), next(reference.batches), strict=True):
        assert torch.equal(one, other)


def test_the_schedule_runs_over_the_time(training, recipe) -> None:
    one = training.Training("fast", recipe, 8.0)
    rates = {}
    for seconds in (0.0, 1.0, 5.0, 8.0):
        one.seconds = seconds
        one.step()
        rates[seconds] = one.optimizer.param_groups[0]["lr"]
    # 12 steps, 3 of them for warm-up, in 8 s: steps 2 (1.5 rounded), 8 (7.5) and 12
    assert rates[0.0] < 1e-7 and rates[8.0] == 0
    assert rates[1.0] == pytest.approx(0.01 * 2 / 3, rel=1e-4)
    assert rates[5.0] == pytest.approx(0.01 * (1 - 5 / 9) ** 0.9)


def test_results_are_what_was_measured(training, recipe) -> None:
    results = training.train(recipe, 0.6)
    assert [result.heads for result in results] == ["fast", "reference"]
    masks = [mask for _, mask in training.validation_images(_data(training, recipe))]
    for result in results:
        assert result.steps > training.LEAST
        assert result.images_per_second <= (result.steps - 1) * 4 / 0.3
        ious = []
        for label in range(7):
            pairs = [(f == label, m == label) for f, m in zip(result.labels, masks, strict=True)]
            union = sum(int((f | m).sum()) for f, m in pairs)
            if union:
                ious.append(sum(int((f & m).sum()) for f, m in pairs) / union)
        assert result.miou == pytest.approx(sum(ious) / len(ious))


def test_the_training_is_shown(training, recipe, monkeypatch, tmp_path, capsys) -> None:
    monkeypatch.setattr(training, "read_recipe", lambda: recipe)
    for name in ("_photograph", "_table"):
        monkeypatch.setattr(demo, name, lambda *arguments: None)
    assert demo.main(["--out", str(tmp_path), "--training-seconds", "0.1"]) == 0
    out = capsys.readouterr().out
    for text in ("fast", "reference", "img/s", "mIoU", "times as many images", "training.png"):
        assert text in out
    picture = plots.pyplot.imread(tmp_path / "training.png")[..., :3]
    height, width = picture.shape[0] // 3, picture.shape[1] // 3  # of a row, of a column
    image, truth = (picture[:height, i * width : (i + 1) * width] for i in range(2))
    data = _data(training, recipe)
    for label in training.validation_images(data)[0][1].unique():
        colour = torch.tensor(data.info.palette[label]) / 255
        same = [
            int(((torch.from_numpy(p) - colour).abs() < 0.01).all(2).sum()) for p in (image, truth)
        ]
        assert same[1] > 20 + same[0], "the truth's colours are in the middle"


def test_labels_are_drawn_in_their_colours(training, recipe) -> None:
    info = _data(training, recipe).info
    drawn = training.coloured(torch.tensor([[0, 3, 255]], dtype=torch.uint8), info)
    assert drawn.tolist() == [[list(info.palette[0]), list(info.palette[3]), [0, 0, 0]]]


def _data(training, recipe):
    return training.SegmentationData(**recipe["data"])


def test_the_command_that_is_shown_trains_the_same(training) -> None:
    """All that the demonstration takes from its recipe, as `attnops train` understands it."""
    engine = pytest.importorskip("attnops.training.engine.command")

    class Parsed(engine._CLI):
        def instantiate_classes(self):
            pass

    arguments, _ = engine._with_recipes(training.command().split()[2:])
    config, recipe = Parsed(arguments).config, training.read_recipe()
    assert config["model"]["network"] == recipe["model"]["network"] == "segnext_t"
    parts = (("data",), ("model", "optimizer"), ("model", "schedule"))
    for path in parts:
        found, wanted = config, recipe
        for key in path:
            found, wanted = found[key], wanted[key]
        for name, value in wanted.items():
            assert found[name] == (tuple(value) if isinstance(value, list) else value)


def test_without_the_extra_the_demo_says_so_and_goes_on(monkeypatch, tmp_path, capsys) -> None:
    for name in ("_photograph", "_table"):
        monkeypatch.setattr(demo, name, lambda *arguments: None)
    monkeypatch.delitem(sys.modules, "attnops.benchmarks.demo.training", raising=False)
    monkeypatch.delattr("attnops.benchmarks.demo.training", raising=False)
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert demo.main(["--out", str(tmp_path)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "training" in line.lower()]
    assert lines == ['No training: yaml is not installed (pip install "attnops[train]")']
