"""`attnops export`, and `attnops predict` of what it wrote."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_data import write_image
from trained import NORMALIZATION, prepared, trained

from attnops import cli
from attnops.models import SegmentationModel, export_program
from attnops.models.normalization import IMAGENET
from attnops.training.data import DataInfo
from attnops.training.data.labels import read_image
from attnops.training.prediction import open_exported

INFO = DataInfo(
    "things", ("a", "b", "c", "d"), ((10, 20, 30), (200, 0, 0), (0, 200, 0), (0, 0, 200))
)


@pytest.fixture
def checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    return path, trained(path, INFO, scales=(1.0,))


def call(*arguments):
    return cli.main(list(map(str, arguments)))


def labels_in(path):
    with Image.open(path) as labels:
        assert labels.mode == "P" and labels.getpalette()[:6] == [10, 20, 30, 200, 0, 0]
        return np.array(labels)


@pytest.mark.parametrize(
    "kind",
    [
        "onnx",
        pytest.param("pt2", marks=pytest.mark.slow),
        pytest.param("aoti", marks=[pytest.mark.inductor, pytest.mark.slow]),
    ],
)
def test_exported_networks_label_images(tmp_path, checkpoint, capsys, kind):
    if kind == "onnx":
        pytest.importorskip("onnxscript")
        pytest.importorskip("onnxruntime")
    path, network = checkpoint
    file = tmp_path / ("net.onnx" if kind == "onnx" else "net.pt2")
    options = ("--dynamic", "--format", kind)
    assert call("export", "--checkpoint", path, *options, "-o", file) == 0
    assert f"{file}: deeplab_attention, labels of images of any size" in capsys.readouterr().out
    write_image(tmp_path / "photos/one.png", (90, 112), seed=1, blocks=10)
    write_image(tmp_path / "photos/two.png", (41, 77), seed=2, blocks=10)  # too small: continued
    out = tmp_path / "out"
    assert call("predict", "--model", file, tmp_path / "photos", "-o", out, "--no-overlay") == 0
    assert "labels of 2 of 2 files, 4 classes" in capsys.readouterr().out
    image = read_image(tmp_path / "photos/one.png")
    wanted = network.predict(prepared(image))[0].numpy()
    assert len(np.unique(wanted)) > 2
    assert (labels_in(out / "one.png") == wanted).mean() >= 0.999
    assert labels_in(out / "two.png").shape == (41, 77)
    exported = open_exported(file)
    assert exported.info == INFO and exported.normalization.to_dict() == NORMALIZATION


def test_one_size_is_that_size(tmp_path, checkpoint, capsys):
    path, network = checkpoint
    file = tmp_path / "net.pt2"
    options = ("--checkpoint", path, "--model", "deeplab_attention", "--output", "logits")
    assert call("export", *options, "--size", "48x64", "-o", file) == 0
    right = write_image(tmp_path / "right.png", (48, 64), seed=1, blocks=10)
    wrong = write_image(tmp_path / "wrong.png", (64, 48))
    assert call("predict", "--model", file, right, wrong, "-o", tmp_path / "out") == 1
    assert f"{file} takes images of 48x64, got 64x48" in capsys.readouterr().err
    wanted = network.predict(prepared(read_image(right)))[0].numpy()
    assert (labels_in(tmp_path / "out/right.png") == wanted).mean() >= 0.999


def test_deployments(tmp_path, checkpoint, monkeypatch):
    """What `deploy` saves goes with its description; the compilation itself is tested elsewhere."""
    path, network = checkpoint
    asked = {}

    class Compiled:
        def save(self, file):
            file.write_bytes(b"compiled")

    def deploy(model, **options):
        asked.update(options)
        return Compiled()

    monkeypatch.setattr("attnops.models.export.deploy", deploy)
    loaded = lambda file: lambda images: network.predict(prepared(images[0]))  # noqa: E731
    monkeypatch.setattr("attnops.training.prediction.exported.load_deployed", loaded)
    file = tmp_path / "net.pt2"
    assert call("export", "--checkpoint", path, "--format", "aoti", "--seed", 5, "-o", file) == 0
    assert file.read_bytes() == b"compiled" and asked["seed"] == 5 and asked["compile"] is True
    image = write_image(tmp_path / "x.png", (48, 64), seed=1, blocks=10)
    assert call("predict", "--model", file, image, "-o", tmp_path / "out") == 0
    wanted = network.predict(prepared(read_image(image)))[0].numpy()
    np.testing.assert_array_equal(labels_in(tmp_path / "out/x.png"), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["-o", "net.pb"], "must end in .onnx or .pt2"),
        (["--format", "onnx", "-o", "net.pt2"], "must end in .onnx"),
        (["--format", "aoti", "--size", "64x64", "-o", "net.pt2"], "images of any size"),
        (["--size", "4x4", "--model", "segnext_t", "-o", "net.pt2"], "holds a deeplab_attention"),
    ],
)
def test_errors_of_the_export(tmp_path, checkpoint, capsys, options, message):
    *options, name = options
    assert call("export", "--checkpoint", checkpoint[0], *options, tmp_path / name) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / name).exists()


def test_files_that_python_wrote_without_classes(tmp_path):
    class Halves(SegmentationModel):
        """Two classes: red above the mean, and red below it."""

        def logits(self, images):
            return {"out": torch.cat([images[:, :1], -images[:, :1]], dim=1)}

    network = Halves()
    network.config = {"name": "halves", "num_classes": 2}
    export_program(network, tmp_path / "net.pt2", (8, 12))
    exported = open_exported(tmp_path / "net.pt2")
    assert exported.info.classes == ("class 0", "class 1") and exported.normalization == IMAGENET
    image = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
    assert torch.equal(exported.labels(image), (image[0] < IMAGENET.mean[0]).long())


def test_onnx_files_need_onnxruntime(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    image = write_image(tmp_path / "x.png", (8, 8))
    assert call("predict", "--model", tmp_path / "net.onnx", image, "-o", tmp_path / "out") == 1
    assert 'need onnxruntime: pip install "attnops[serve]"' in capsys.readouterr().err


def test_errors_of_what_is_no_export(tmp_path, capsys):
    image = write_image(tmp_path / "x.png", (8, 8))
    out = ("-o", tmp_path / "out")
    for name, beside, message in (
        ("none.pt2", None, "no such exported network"),
        ("lone.pt2", None, "lone.json, which was written with it, is not beside it"),
        ("odd.pt2", {"some": "thing"}, "was not written by attnops"),
        ("new.pt2", {"format": 9, "version": "9.9"}, "was written by attnops 9.9"),
    ):
        file = tmp_path / name
        if name != "none.pt2":
            file.write_bytes(b"")
        if beside:
            file.with_suffix(".json").write_text(json.dumps(beside))
        assert call("predict", "--model", file, image, *out) == 1
        assert message in capsys.readouterr().err
    assert call("predict", "--model", file, image, *out, "--flip") == 1
    assert "is an exported network" in capsys.readouterr().err
