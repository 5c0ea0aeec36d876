"""The pictures of the documentation are what their scripts draw."""

from __future__ import annotations

import importlib
import sys

import numpy
import pytest
from checkout import ROOT
from PIL import Image

FOLDER = ROOT / "docs" / "pictures"
NAMES = [path.stem.removeprefix("draw_") for path in sorted(FOLDER.glob("draw_*.py"))]
TRAINED = "prediction"  # needs a trained network


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Runs a script and gives the picture that it draws."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    known = set(sys.modules)
    panels = importlib.import_module("panels")
    monkeypatch.setattr(panels, "OUT", tmp_path)

    def run(name: str, *arguments: str) -> numpy.ndarray:
        importlib.import_module(f"draw_{name}").main(*arguments)
        return pixels(tmp_path / f"{name}.png")

    yield run
    for name in set(sys.modules) - known:
        if name in ("panels", "denoise") or name.startswith("draw_"):
            del sys.modules[name]


def pixels(path) -> numpy.ndarray:
    return numpy.asarray(Image.open(path).convert("RGB"), dtype=numpy.float32)


def test_every_picture_has_a_script() -> None:
    assert {path.stem for path in FOLDER.glob("*.png")} == set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != TRAINED])
def test_picture_is_what_its_script_draws(draw, name: str) -> None:
    """Up to what fonts, and rounding of the last bit, do to it; no margin is cut off."""
    pytest.importorskip("matplotlib")
    pytest.importorskip("skimage")
    found, expected = draw(name), pixels(FOLDER / f"{name}.png")
    assert abs(numpy.array(found.shape) - expected.shape).max() <= 8
    height, width = numpy.minimum(found.shape[:2], expected.shape[:2])
    difference = numpy.abs(found[:height, :width] - expected[:height, :width])
    assert difference.mean() < 4
    border = numpy.concatenate([found[:3].ravel(), found[-3:].ravel(), found[:, :3].ravel()])
    assert border.min() > 250


@pytest.mark.slow
def test_prediction_is_drawn_from_a_checkpoint(draw, tmp_path) -> None:
    """Image and truth are those of the committed picture; the network has learned nothing yet."""
    pytest.importorskip("lightning")
    pytest.importorskip("matplotlib")
    from attnops.cli import main

    command = f"train --config shapes_segnext_t --trainer.default_root_dir {tmp_path}"
    steps = " --trainer.max_steps 1 --trainer.limit_val_batches 1 --data.num_workers 0"
    assert main((command + steps).split()) == 0
    (checkpoint,) = tmp_path.glob("*/last.ckpt")
    found, expected = draw(TRAINED, str(checkpoint)), pixels(FOLDER / f"{TRAINED}.png")
    assert abs(numpy.array(found.shape) - expected.shape).max() <= 8
    height, width = numpy.minimum(found.shape[:2], expected.shape[:2])
    difference = numpy.abs(found[:height, :width] - expected[:height, :width])
    left, right = difference[:, : 3 * width // 5], difference[:, 3 * width // 4 :]
    assert left.mean() < 4 < right.mean()
