"""Networks as ONNX files and as programs, against the networks themselves."""

from __future__ import annotations

import json

import pytest
import torch
from tiny_networks import CLASSES, FAMILIES, tiny_network
from torch.nn.functional import adaptive_avg_pool2d, adaptive_max_pool2d

from attnops import models
from attnops.models import create_model, export, export_onnx, export_program
from attnops.nn.evaluation import evaluation_twin
from attnops.reference._exporting import portable
from attnops.reference.pyramid_pool import pyramid_pool

SIZE = (129, 145)
QUICK = ("sanet",)  # of the families; the others take half a minute each


def families():
    return [
        name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES
    ]


def session_of(path):
    onnx, onnxruntime = map(pytest.importorskip, ("onnx", "onnxruntime"))
    graph = onnx.load(path).graph
    assert {node.domain for node in graph.node} == {""}, "operators that are no standard ones"
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(session, images):
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def logits_of(network, images):
    with torch.no_grad():
        return evaluation_twin(network)(images)["out"]


def assert_close(logits, wanted):
    assert float((logits - wanted).abs().max()) <= 1e-5 * float(wanted.abs().max())


@pytest.fixture(autouse=True)
def exporter():
    pytest.importorskip("onnxscript")


@pytest.mark.parametrize("family", families())
def test_logits_of_one_size(tmp_path, family):
    network = tiny_network(family)
    path = tmp_path / "net.onnx"
    export_onnx(network, path, SIZE, "logits")
    assert network.training
    session = session_of(path)
    assert session.get_inputs()[0].shape == ["batch", 3, *SIZE]
    for batch in (1, 3):
        images = torch.randn(batch, 3, *SIZE)
        assert_close(run(session, images), logits_of(network, images))


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_labels_of_any_size(tmp_path, family):
    network = tiny_network(family)
    path = tmp_path / "net.onnx"
    export_onnx(network, path)
    session = session_of(path)
    assert session.get_inputs()[0].shape == ["batch", 3, "height", "width"]
    for shape in ((2, 3, 256, 320), (1, 3, 223, 345)):
        images = 3 * torch.randn(shape)
        labels = run(session, images)
        assert labels.dtype == torch.int64
        assert (labels == logits_of(network, images).argmax(1)).float().mean() >= 0.999


@pytest.mark.parametrize("output", ["labels", pytest.param("logits", marks=pytest.mark.slow)])
def test_programs_keep_the_ops(tmp_path, output):
    network = tiny_network("sanet")
    path = tmp_path / "net.pt2"
    export_program(network, path, None, output, description={"note": 1})
    program = torch.export.load(path)
    assert "attnops.upsample_gate" in str(program.graph)
    for shape in ((2, 3, 128, 96), (1, 3, 75, 181)):
        images = 3 * torch.randn(shape)
        found, wanted = program.module()(images), logits_of(network, images)
        if output == "logits":
            assert_close(found, wanted)
        else:
            assert torch.equal(found, evaluation_twin(network).predict(images))
    description = json.loads((tmp_path / "net.json").read_text())
    assert description["output"] == output and description["note"] == 1


def test_bases_are_drawn_once(tmp_path):
    """Two exports of one seed are alike, another seed gives others, and bases of one's own stay."""
    network = create_model("segnext_t", num_classes=CLASSES).eval()
    given = torch.rand(1, 256, 16)
    found = {}
    for name, seed, bases in (("a", 0, None), ("b", 0, None), ("c", 1, None), ("d", 1, given)):
        network.decoder.context.bases = bases
        module = export._program.exported_module(network, "labels", seed)
        found[name] = module.network.decoder.context.bases
        assert network.decoder.context.bases is bases
    assert torch.equal(found["a"], found["b"]) and not torch.equal(found["a"], found["c"])
    assert torch.equal(found["d"], given)


@pytest.mark.parametrize("shape", [(9, 13), (16, 24), (5, 1), (2, 3)])
@pytest.mark.parametrize("sizes", [(1, 3, 6, 8), (1,), (2,)])
def test_pooling_by_products(shape, sizes):
    x = torch.randn(2, 3, *shape, dtype=torch.float64)
    with portable():
        means, largest = (pyramid_pool(x, sizes, reduce) for reduce in ("mean", "max"))
    wanted = torch.cat([adaptive_avg_pool2d(x, n).flatten(2) for n in sizes], dim=2)
    torch.testing.assert_close(means, wanted)
    wanted = torch.cat([adaptive_max_pool2d(x, n).flatten(2) for n in sizes], dim=2)
    assert torch.equal(largest, wanted)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"path": "net.pb"}, ValueError, "must end in"),
        ({"path": "none/net.onnx"}, ValueError, "is no folder"),
        ({"size": (16, 64)}, ValueError, "at least 32x32, got size=16x64"),
        ({"size": 1.5}, TypeError, "size"),
        ({"output": "masks"}, ValueError, "output"),
        ({"seed": -1}, ValueError, "seed"),
        ({"model": torch.nn.Conv2d(3, 3, 1)}, TypeError, "network of attnops.models"),
    ],
)
@pytest.mark.parametrize("write", [export_onnx, export_program])
def test_errors(tmp_path, write, options, error, message):
    suffix = ".onnx" if write is export_onnx else ".pt2"
    options = {"model": tiny_network("segnext"), "path": "net.onnx"} | options
    path = tmp_path / options.pop("path").replace(".onnx", suffix)
    with pytest.raises(error, match=message):
        write(path=path, **options)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(export.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r"onnx and onnxscript: pip install .attnops\[serve\]"):
        export_onnx(create_model("segnext_t"), tmp_path / "net.onnx")


def test_networks_of_one_size_say_so(tmp_path):
    class OneSize(models.SegmentationModel):
        def logits(self, images):
            return {"out": images.reshape(images.shape[0], 3, 96, 96)}

    with pytest.raises(ValueError, match=r"OneSize cannot be exported for images of any size"):
        export_program(OneSize(), tmp_path / "net.pt2")
    export_program(OneSize(), tmp_path / "net.pt2", (96, 96))
