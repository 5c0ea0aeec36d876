"""Every published network as an ONNX file, in onnxruntime and in OpenVINO."""

from __future__ import annotations

import pytest
import torch
from model_checks import shake

from attnops.models import create_model, export_onnx, list_models

pytestmark = pytest.mark.slow

SIZES = ((224, 288), (257, 225))


def _onnxruntime(path):
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images.numpy()})[0]


def _openvino(path):
    openvino = pytest.importorskip("openvino")
    compiled = openvino.Core().compile_model(
        str(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    )
    return lambda images: compiled([images.numpy()])[0]


@pytest.mark.parametrize("name", list_models())
def test_published_networks_of_any_size(tmp_path, name):
    """One file, two sizes, two runtimes: logits to 1e-3, labels of 99.9 % of the pixels."""
    onnx, _ = map(pytest.importorskip, ("onnx", "onnxscript"))
    torch.manual_seed(0)
    options = {"seed": 0} if name.startswith("segnext") else {}
    network = create_model(name, **options).eval()
    for part, module in network.named_children():
        if part != "backbone":  # 100 layers of other norms would make any rounding grow
            shake(module)
    path = tmp_path / "net.onnx"
    export_onnx(network, path, output="logits")
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    runs = {"onnxruntime": _onnxruntime(path), "openvino": _openvino(path)}
    for size in SIZES:
        images = torch.randn(1, 3, *size)
        with torch.no_grad():
            wanted = network(images)["out"]
        for runtime, run in runs.items():
            found = torch.from_numpy(run(images))
            error = float((found - wanted).abs().max() / wanted.abs().max())
            alike = float((found.argmax(1) == wanted.argmax(1)).float().mean())
            print(f"{name} {size[0]}x{size[1]} {runtime}: {error:.1e}, {100 * alike:.3f} %")
            assert error <= 1e-3 and alike >= 0.999
